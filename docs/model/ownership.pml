/* Who may work on a token: the rules of leases, hand-off, take-over and fence, for an exhaustive
 * search by SPIN.
 *
 * `check.py` beside this file runs it; `README.md` says what is modelled, how far, and what is not.
 *
 * One token, N processes, NN names. Anything may happen between two steps: a process may be slow
 * for ever (a pause is that it takes no step while the clock ticks), be killed and started again,
 * or lose the answer of what was committed.
 *
 * No counter is stored that is only compared for equality, so there is no bound on beats, versions,
 * epochs, terms or restarts: in its place stands whether what was read of it is still what the
 * table says (`same`, `*_right`, `*_current`). Incarnations that nothing refers to any more are
 * used again.
 *
 * Each rule of the code is a macro. `-DNO_<rule>` switches it off, and the search then finds what
 * it is for.
 */

#if defined(SAME_NAME)          /* two processes under one name */
#define N 2
#define NN 1
#define NAME(p) 0
#define WORKERS 2
#elif defined(LEADER_APART)     /* two workers, and a leader that takes no tokens and never dies */
#define N 3
#define NN 2
#define NAME(p) p
#define WORKERS 2
#else                           /* two workers, either of which may lead */
#define N 2
#define NN 2
#define NAME(p) p
#define WORKERS 2
#define GIVES 1                 /* a leader has tokens, and there is somebody to give them to */
#endif
#define TIMEOUT 2               /* ticks for which a beat must have been seen to stand still */
/* a worker's times are its own: the last process has a longer timeout and lease */
#ifdef MIXED
#define LONGER(p) (p == WORKERS - 1)
#define LONGEST (TIMEOUT + 1)
#else
#define LONGER(p) 0
#define LONGEST TIMEOUT
#endif

/* ---- the rules, each with its place in the code ---- */

/* Lease.extend(sent_at): counted from before the heartbeat was sent */
#ifdef NO_LEASE_FROM_SENDING
#define EXTENSION(p) LEASE_OF(p)
#else
#define EXTENSION(p) (LEASE_OF(p) - w[p].hb_age)
#endif

/* core/lease.py, SAFETY_MARGIN: lease_sec < heartbeat_timeout_sec, clock errors included */
#ifdef NO_LEASE_BELOW_TIMEOUT
#define LEASE 3
#else
#define LEASE 2     /* one tick, and one by which a slow clock may lengthen it */
#endif
#define LEASE_OF(p) (LEASE + LONGER(p))

/* Worker.owns, Worker.may_act, Claim.valid */
#ifdef NO_OWNS_ASKS_THE_CLOCK
#define MAY_ACT(p) 1
#else
#define MAY_ACT(p) (w[p].lease > 0)
#endif

/* heartbeat: WHERE name AND incarnation */
#ifdef NO_HEARTBEAT_NAMES_INCARNATION
#define MY_ROW(p) (row[NAME(p)] != 0)
#else
#define MY_ROW(p) (row[NAME(p)] == w[p].ident)
#endif

/* keep_beating: no row means that this incarnation was expired */
#ifdef NO_NO_ROW_FENCES
#define FENCED(p) 0
#else
#define FENCED(p) (w[p].hb == NO_ROW)
#endif

/* Worker.begin_incarnation: stop_acting comes first */
#ifdef NO_FORGET_BEFORE_REJOINING
#define FORGETS 0
#else
#define FORGETS 1
#endif

/* expire_nodes: WHERE name AND incarnation AND beat */
#ifdef NO_EXPIRE_COMPARES_BEAT
#define AS_WATCHED(p, n) 1
#else
#define AS_WATCHED(p, n) w[p].same[n]
#endif

/* join, replace_node: only the beat that was watched */
#ifdef NO_REPLACE_COMPARES_BEAT
#define STILL_STANDS(p) 1
#else
#define STILL_STANDS(p) w[p].same[NAME(p)]
#endif

/* Watch.observe(beats, now): by the timeout that came with the beat; that is the row's, for only a
 * beat that stands still counts */
#ifdef NO_JUDGED_BY_ITS_OWN_TIMEOUT
#define TIMEOUT_OF(p, n) (TIMEOUT + LONGER(p))
#else
#define TIMEOUT_OF(p, n) (TIMEOUT + longer[n])
#endif
#ifndef MIXED
#undef TIMEOUT_OF
#define TIMEOUT_OF(p, n) TIMEOUT
#endif

/* Watch.stalled */
#ifdef NO_WATCH_FOR_A_FULL_TIMEOUT
#define STALLED(p, n) (w[p].stood[n] >= TIMEOUT_OF(p, n) - 1)
#else
#define STALLED(p, n) (w[p].stood[n] >= TIMEOUT_OF(p, n))
#endif

/* Watch.observe(beats, now): not from when it was asked */
#ifdef NO_OBSERVE_FROM_ARRIVAL
#define SEEN_FOR(p) w[p].hb_age
#else
#define SEEN_FOR(p) 0
#endif

/* acknowledge: WHERE version = that of the revocation that is answered */
#ifdef NO_ACK_NAMES_VERSION
#define ACK_VERSION(p) 1
#else
#define ACK_VERSION(p) w[p].ack_current
#endif

/* Ownership.releasable: no claim is open */
#ifdef NO_ACK_WAITS_FOR_USERS
#define UNUSED(p) 1
#else
#define UNUSED(p) (!w[p].claim)
#endif

/* Ownership.enter, Ownership.readmit: nothing starts on a revoked token that nobody here uses */
#ifdef NO_NOTHING_STARTS_ON_WHAT_GOES
#define MAY_START(p) (w[p].own != NOTHING)
#else
#define MAY_START(p) (w[p].own == OWNED)
#endif

/* Ownership.hand_on: a leader gives away by its plan what nobody there uses */
#ifdef NO_PLAN_LEAVES_WHAT_IS_USED
#define UNUSED_THERE(p) 1
#else
#define UNUSED_THERE(p) (!w[p].claim)
#endif

/* Ownership.hand_on: nothing starts on that, from before it is written */
#ifdef NO_PLAN_LETS_GO_FIRST
#define LETS_GO_BY_PLAN 0
#else
#define LETS_GO_BY_PLAN 1
#endif

/* Ownership.apply, not_before: no reading from before that plan's version */
#ifdef NO_READINGS_OF_BEFORE_A_PLAN_DROPPED
#define FROM_BEFORE_A_PLAN(p) 0
#else
#define FROM_BEFORE_A_PLAN(p) (plan == p + 1)
#endif

/* _Follower.serve: one task does both */
#ifdef NO_READ_AND_ACK_IN_TURN
#define IN_TURN(x) 1
#else
#define IN_TURN(x) (x)
#endif

/* Ownership.apply: another incarnation's, or from before everything was lost */
#ifdef NO_OLD_SNAPSHOTS_DROPPED
#define DROPS 0
#else
#define DROPS 1
#endif

/* read_changes, assign_tokens: by incarnation, not by name */
#ifdef NO_OWNER_BY_INCARNATION
#define MINE(p) (t_owner == NAME(p) + 1)
#define LIVE_OWNER (t_owner != 0 && row[(t_owner + NN - 1) % NN] != 0)
#else
#define MINE(p) (t_inc != 0 && t_inc == w[p].ident)
#define LIVE_OWNER live(t_inc)
#endif

/* assign_tokens: epoch + 1 */
#ifdef NO_ASSIGN_RAISES_EPOCH
#define ASSIGN_RAISES 0
#else
#define ASSIGN_RAISES 1
#endif

/* acknowledge: epoch + 1 */
#ifdef NO_ACK_RAISES_EPOCH
#define ACK_RAISES 0
#else
#define ACK_RAISES 1
#endif

/* inherit_tokens: epoch + 1 */
#ifdef NO_INHERIT_RAISES_EPOCH
#define INHERIT_RAISES 0
#else
#define INHERIT_RAISES 1
#endif

/* Claim.fence_sql: WHERE incarnation AND epoch */
#ifdef NO_FENCE_NAMES_OWNER
#define FENCE_HOLDS(p) 1
#else
#define FENCE_HOLDS(p) w[p].f_right
#endif

/* Claim.fence_sql: FOR KEY SHARE */
#ifdef NO_FENCE_LOCKS
#define LOCKS 0
#else
#define LOCKS 1
#endif

/* assign_tokens: FOR UPDATE SKIP LOCKED */
#ifdef NO_ASSIGN_RESPECTS_FENCE
#define ASSIGN_MAY_WRITE 1
#else
#define ASSIGN_MAY_WRITE (locks == 0)
#endif

/* acknowledge: the same */
#ifdef NO_ACK_RESPECTS_FENCE
#define ACK_MAY_WRITE 1
#else
#define ACK_MAY_WRITE (locks == 0)
#endif

/* inherit_tokens: the same */
#ifdef NO_INHERIT_RESPECTS_FENCE
#define INHERIT_MAY_WRITE 1
#else
#define INHERIT_MAY_WRITE (locks == 0)
#endif

/* free_tokens_of: the same */
#ifdef NO_LEAVE_RESPECTS_FENCE
#define LEAVE_MAY_WRITE 1
#else
#define LEAVE_MAY_WRITE (locks == 0)
#endif

/* Coordinator._let_go, then _sign_off */
#ifdef NO_LEAVE_LETS_GO_FIRST
#define LETS_GO_FIRST 0
#else
#define LETS_GO_FIRST 1
#endif

/* lock_as_leader: WHERE term AND leader_incarnation AND the own row */
#ifdef NO_LOCK_AS_LEADER
#define LEADS(p) w[p].led
#else
#define LEADS(p) (leader != 0 && leader == w[p].ident)
#endif

#if defined(NO_EXPIRE_COMPARES_BEAT) || defined(NO_REPLACE_COMPARES_BEAT)
/* how long a beat stood still that has moved since: with the rules, nobody asks */
#define KEEP_STANDING 1
#else
#define KEEP_STANDING 0
#endif
#if defined(NO_FENCE_NAMES_OWNER) || defined(NO_FENCE_LOCKS) || \
    defined(NO_ASSIGN_RESPECTS_FENCE) || defined(NO_ACK_RESPECTS_FENCE) || \
    defined(NO_INHERIT_RESPECTS_FENCE) || defined(NO_LEAVE_RESPECTS_FENCE)
/* a fence that is asked for too late fails, and one that locks keeps the row as it is */
#define KEEP_FENCES 1
#else
#define KEEP_FENCES 0
#endif
#ifdef NO_ACK_NAMES_VERSION
#define KEEP_ACKS 1             /* an acknowledgement of what has changed since does nothing */
#else
#define KEEP_ACKS 0
#endif

/* ---- the tables ---- */

byte row[NN];                   /* node: the incarnation of this name's row, 0 for no row */
#ifdef MIXED
bit longer[NN];                 /* ... and whether it says the longer timeout */
#define says_its_times(p) longer[NAME(p)] = LONGER(p)
#else
#define says_its_times(p) skip
#endif
/* cluster.leader_incarnation, 0 when it has no row: then its term is as good as over */
byte leader;
byte t_inc;                     /* token.incarnation, 0 for nobody */
byte t_next;                    /* token.next_node: 0 for null, a name's number + 1, or NOBODY */
byte locks;                     /* how many fences lock the token's row FOR KEY SHARE */
#ifdef NO_OWNER_BY_INCARNATION
byte t_owner;                   /* token.node: the name's number + 1 */
#endif
#define NOBODY (NN + 1)
/* whose plan gives the token away and is not yet committed, a process's number + 1, 0 for none; it
 * has the cluster row's lock */
#ifdef GIVES
byte plan;
#else
#define plan 0
#endif
#define unlocked (plan == 0)

#if defined(NO_ASSIGN_RAISES_EPOCH) || defined(NO_ACK_RAISES_EPOCH) || \
    defined(NO_INHERIT_RAISES_EPOCH)
#define COUNT_COMMITS 1         /* with the rules there is none under a new owner's epoch */
#else
#define COUNT_COMMITS 0
#endif
/* through the fence under the present epoch: 0 nobody, 1 its owner, 2 somebody else */
byte committed;

/* ---- a process ---- */

#define OFF 0
#define JOINING 1
#define MEMBER 2

#define NOTHING 0               /* `own`, `rd` - 1: what a reading showed of the token */
#define OWNED 1
#define REVOKING 2

#define SENT 1                  /* `hb` */
#define BEATEN 2
#define NO_ROW 3

/* `ans`: the beat in the answer is not the table's any more, or there is no row */
#define MOVED 0
#define NEWS 1                  /* it is, and it is not the one that is watched */
#define STANDS 2                /* it is, and it is the one that is watched */

#define ASKED 1                 /* `f` */
#define LOCKED 2

typedef Worker {
    unsigned mode : 2;
    unsigned ident : 3;         /* identity.incarnation */
    unsigned lease : 3;         /* ticks left */
    /* the heartbeat under way, and the ticks since before it was sent */
    unsigned hb : 2;
    unsigned hb_age : 2;
    byte ans[NN];               /* what its answer shows of each other's beat */
    bit same[NN];               /* the beat that is watched is still the table's */
    byte stood[NN];             /* for how many ticks it was seen to stand still */
    bit watches_own;            /* the name was in use when it wanted to join */
    unsigned own : 2;           /* what is known of the token */
    bit own_right;              /* ... and its incarnation and epoch are still the row's */
    bit own_current;            /* ... and so is the version of its revocation */
    unsigned rd : 2;            /* 0, or 1 + what a reading under way has shown */
    bit rd_right, rd_current;   /* the same of it */
    /* an acknowledgement under way; it may be carried out long after it was given up */
    bit ack, ack_current;
    bit claim;                  /* somebody here works on the token */
    unsigned f : 2;             /* the user's transaction: the fence is asked for, or locks */
    bit f_right;                /* its incarnation and epoch are still the row's */
    bit led                     /* it has led, and believes that it leads (only without the rule) */
};
Worker w[N];

hidden byte i, j, old;          /* of one step */

#if NN > 1
#define live(x) (x != 0 && (x == row[0] || x == row[1]))
#else
#define live(x) (x != 0 && x == row[0])
#endif

/* The first promise: at no time do two work on the token, or may begin to; nor while another's
 * transaction holds the fence. */
#define holds(p) (MAY_ACT(p) && (w[p].own == OWNED || w[p].claim))
#define one_holder \
    assert(!(holds(0) && holds(1))); \
    assert(!(holds(0) && w[1].f == LOCKED) && !(holds(1) && w[0].f == LOCKED))

/* beat, incarnation or existence of a row changed: what was read of it is true no more */
inline row_moved(n) {
    for (i : 0 .. N - 1) {
        w[i].same[n] = 0;
        if
        :: KEEP_STANDING && w[i].ans[n] == NEWS -> w[i].ans[n] = MOVED
        :: !KEEP_STANDING -> w[i].ans[n] = MOVED; w[i].stood[n] = 0
        :: else
        fi
    }
}

inline token_moved() {          /* its row has another version */
    for (i : 0 .. N - 1) {
        w[i].own_current = 0; w[i].rd_current = 0; w[i].ack_current = 0;
        if :: !KEEP_ACKS -> w[i].ack = 0 :: else fi
    }
}

inline give(x, raises) {        /* the token has another owner */
    t_inc = x;
#ifdef NO_OWNER_BY_INCARNATION
    t_owner = 0;
    for (i : 0 .. NN - 1) { if :: x != 0 && row[i] == x -> t_owner = i + 1 :: else fi }
#endif
    t_next = 0;
    token_moved();
    if
    :: raises -> committed = 0
    :: !raises && committed != 0 -> committed = 2
    :: else
    fi;
    for (i : 0 .. N - 1) {
        w[i].own_right = 0; w[i].rd_right = 0;
        if :: w[i].f != 0 && (raises || w[i].ident != x) -> w[i].f_right = 0 :: else fi;
        if :: !KEEP_FENCES && w[i].f != 0 -> w[i].f = 0; w[i].f_right = 0 :: else fi
    }
}

inline new_leader(x) { leader = x }

inline lead_if_nobody_does(first) {       /* the oldest; here either, which allows more */
#ifndef LEADER_APART
    if
    :: !live(leader) && row[first % NN] != 0 -> leader = row[first % NN]
    :: !live(leader) && row[first % NN] == 0 -> leader = row[(first + 1) % NN]
    :: else
    fi
#else
    skip
#endif
}

inline drop_reading(p) { w[p].rd = 0; w[p].rd_right = 0; w[p].rd_current = 0 }

/* Ownership.forget; a reading that continues what was known does not continue it now */
inline forget(p) {
    if :: w[p].own != NOTHING && DROPS -> drop_reading(p) :: else fi;
    w[p].own = NOTHING; w[p].own_right = 0; w[p].own_current = 0; w[p].claim = 0
}

inline end_heartbeat(p) {
    w[p].hb = 0; w[p].hb_age = 0;
    for (i : 0 .. NN - 1) { w[p].ans[i] = MOVED }
}

inline stop_watching(p) {
    for (i : 0 .. NN - 1) { w[p].same[i] = 0; w[p].stood[i] = 0 }
    w[p].watches_own = 0
}

/* An incarnation ends. Its number is free for the next one: what the tables have of it is called an
 * old one's from now on. */
#define OLD(n) (N + 1 + n)
inline retire(p) {
    if
    :: w[p].ident != 0 && row[NAME(p)] == w[p].ident ->
        row[NAME(p)] = OLD(NAME(p));
        if :: leader == w[p].ident -> leader = OLD(NAME(p)) :: else fi;
        if :: t_inc == w[p].ident -> t_inc = OLD(NAME(p)) :: else fi
    :: w[p].ident != 0 && row[NAME(p)] != w[p].ident && t_inc == w[p].ident -> t_inc = 0
    :: else
    fi;
    w[p].ident = 0
}

/* what is under way on the server goes on there: an acknowledgement, a fence */
inline end_process(p) {
    forget(p); drop_reading(p); end_heartbeat(p); stop_watching(p);
    w[p].lease = 0; w[p].led = 0; w[p].mode = OFF; retire(p)
}

/* ---- joining, beating, leaving (tasks/heartbeat.py, postgres/membership.py) ---- */

inline begin(p) { w[p].ident = p + 1; w[p].mode = JOINING }       /* begin_incarnation */

/* committed; should the answer be lost, the next try finds the row */
inline joined(p, first) {
    stop_watching(p);
    lead_if_nobody_does(first);
    w[p].mode = MEMBER
}

inline join(p, first) {
    if
    :: row[NAME(p)] == 0 ->
        row[NAME(p)] = w[p].ident;
        says_its_times(p);
        row_moved(NAME(p));
        joined(p, first)
    :: row[NAME(p)] != 0 && row[NAME(p)] != w[p].ident && !w[p].watches_own ->
        w[p].watches_own = 1; w[p].same[NAME(p)] = 1; w[p].stood[NAME(p)] = 0
    :: row[NAME(p)] != 0 && row[NAME(p)] != w[p].ident && w[p].watches_own &&
       STILL_STANDS(p) && STALLED(p, NAME(p)) ->
        old = row[NAME(p)];
        row[NAME(p)] = w[p].ident;
        says_its_times(p);
        row_moved(NAME(p));
        if
        :: t_inc == old && INHERIT_MAY_WRITE ->                 /* inherit_tokens */
            old = t_next; give(w[p].ident, INHERIT_RAISES); t_next = old
        :: t_inc == old && !INHERIT_MAY_WRITE && old == OLD(NAME(p)) ->
            t_inc = 0           /* a fence locks it: nobody's */
        :: else
        fi;
        old = 0;
        joined(p, first)
    :: row[NAME(p)] != 0 && row[NAME(p)] != w[p].ident && w[p].watches_own &&
       !w[p].same[NAME(p)] ->
        end_process(p)
    fi                          /* the last one is NodeNameTaken */
}

inline beat(p) {                /* the heartbeat's statement, on the server */
    if
    :: MY_ROW(p) ->
        row_moved(NAME(p));
        for (i : 0 .. NN - 1) {
            if
            :: i == NAME(p) || row[i] == 0 -> w[p].ans[i] = MOVED
            :: i != NAME(p) && row[i] != 0 && w[p].same[i] -> w[p].ans[i] = STANDS
            :: i != NAME(p) && row[i] != 0 && !w[p].same[i] -> w[p].ans[i] = NEWS
            fi
        }
        w[p].hb = BEATEN
    /* and so will be every later one: its answer may as well come at once */
    :: else -> w[p].hb = NO_ROW
    fi
}

inline beat_answered(p) {       /* Worker.beat_answered */
    if
    :: w[p].lease < EXTENSION(p) && EXTENSION(p) <= LEASE_OF(p) -> w[p].lease = EXTENSION(p)
    :: else
    fi;
    for (i : 0 .. NN - 1) {
        if
        :: i == NAME(p) || w[p].ans[i] == STANDS
        :: i != NAME(p) && w[p].ans[i] == NEWS -> w[p].same[i] = 1; w[p].stood[i] = SEEN_FOR(p)
        :: i != NAME(p) && w[p].ans[i] == MOVED -> w[p].same[i] = 0; w[p].stood[i] = 0
        fi
    }
    end_heartbeat(p);
    one_holder
}

inline expired(p) {             /* begin_incarnation, then join */
    if :: FORGETS -> forget(p); w[p].lease = 0 :: else fi;
    if :: DROPS -> drop_reading(p) :: else fi;
    end_heartbeat(p); stop_watching(p);
    w[p].led = 0; retire(p);
    begin(p)
}

inline leave(p, first) {
    row[NAME(p)] = 0;
    row_moved(NAME(p));
    if
    :: t_inc == w[p].ident && LEAVE_MAY_WRITE -> give(0, 1)   /* free_tokens_of */
    :: else
    fi;
    lead_if_nobody_does(first);
    if
    :: LETS_GO_FIRST -> end_process(p)
    :: else -> w[p].mode = OFF; retire(p); drop_reading(p); end_heartbeat(p); stop_watching(p)
    fi
}

/* ---- reading and acknowledging (tasks/rebalance.py, core/ownership.py) ---- */

inline read(p) {                /* read_changes, on the server; the answer comes later */
    if
    :: MINE(p) && t_next == 0 -> w[p].rd = 1 + OWNED; w[p].rd_right = 1
    :: MINE(p) && t_next != 0 -> w[p].rd = 1 + REVOKING; w[p].rd_right = 1; w[p].rd_current = 1
    :: else -> w[p].rd = 1 + NOTHING
    fi;
    /* what changes nothing when it comes need not be remembered: an end of the lease drops it */
    if
    :: w[p].rd == w[p].own + 1 && w[p].rd_right == w[p].own_right &&
       w[p].rd_current == w[p].own_current ->
        drop_reading(p)
    :: else
    fi
}

inline snapshot_read(p) {       /* Worker.snapshot_read, Ownership.apply */
    if
    :: MAY_ACT(p) ->
        if
        :: w[p].rd == 1 + NOTHING -> w[p].claim = 0
        /* it went and came back: another epoch */
        :: w[p].rd_right != w[p].own_right -> w[p].claim = 0
        :: !w[p].rd_right && !w[p].own_right -> w[p].claim = 0          /* perhaps so */
        :: w[p].rd != 1 + NOTHING && w[p].rd_right == w[p].own_right    /* the same stay */
        fi;
        w[p].own = w[p].rd - 1; w[p].own_right = w[p].rd_right; w[p].own_current = w[p].rd_current
    :: else
    fi;
    drop_reading(p);
    one_holder
}

/* on the server, under the cluster row's lock: as one step */
inline acknowledge(p, answered) {
    if
    :: t_next != 0 && ACK_VERSION(p) && ACK_MAY_WRITE ->
        if
        :: t_next == NOBODY -> give(0, ACK_RAISES)
        :: else ->              /* the receiver's row, or nobody */
            old = row[(t_next + NN - 1) % NN]; give(old, ACK_RAISES); old = 0
        fi;
        if :: answered && w[p].own == REVOKING -> forget(p) :: else fi  /* Ownership.released */
    :: else
    fi;
    w[p].ack = 0; w[p].ack_current = 0
}

#ifdef GIVES
/* The leader's own token, by its plan (Ownership.hand_on, assign_tokens): first it lets go of it,
 * under the lock, and then it writes that. What was read before is not taken in. */
inline hand_on(p) {
    plan = p + 1;
    if :: LETS_GO_BY_PLAN -> w[p].own = REVOKING; w[p].own_current = 0 :: else fi;
    if :: FROM_BEFORE_A_PLAN(p) -> drop_reading(p) :: else fi
}

/* also after its process is gone; what a fence keeps is revoked instead, for its owner stays */
inline commit_plan(p, answered) {
    if
    :: ASSIGN_MAY_WRITE ->
        old = row[1 - p]; give(old, ASSIGN_RAISES); old = 0;
        if :: answered && w[p].own != NOTHING -> forget(p) :: else fi   /* Ownership.released */
    :: else -> t_next = 2 - p; token_moved()
    fi;
    plan = 0
}
#endif

/* ---- the fence (claims.py) ---- */

/* The second promise: what is committed through the fence is the present owner's, and no two owners
 * commit under one epoch. */
inline commit(p) {
    assert(w[p].f_right);
    assert(committed != 2);
    if :: COUNT_COMMITS -> committed = 1 :: else fi
}

inline end_transaction(p) {
    if :: w[p].f == LOCKED && LOCKS -> locks-- :: else fi;
    w[p].f = 0; w[p].f_right = 0
}

/* ---- leading (tasks/leader.py, postgres/leader.py) ---- */

/* Each transaction holds the cluster row's lock, so it is one step. But a plan that gives the
 * leader's own token away lets go of it before the commit: nobody takes the lock meanwhile. */

/* nobody else ever writes as the leader */
#define as_leader(p) assert(leader != 0 && leader == w[p].ident)

inline expire(n) {
    if :: t_inc == OLD(n) -> t_inc = 0 :: else fi;
    row[n] = 0;
    row_moved(n);
    if :: !live(leader) -> leader = 0 :: else fi
}

/* the leader that is apart: a heartbeat whose answer comes at once */
inline observe(p) {
    for (i : 0 .. NN - 1) {
        if
        :: row[i] == 0 -> w[p].same[i] = 0; w[p].stood[i] = 0
        :: row[i] != 0 && w[p].same[i]
        :: row[i] != 0 && !w[p].same[i] -> w[p].same[i] = 1; w[p].stood[i] = 0
        fi
    }
}

/* ---- all that may happen ---- */

#ifdef LEADER_APART
#define may_lead(p) (unlocked && p == WORKERS)
#define proves(p) skip
#else
#define may_lead(p) (unlocked && w[p].mode == MEMBER && LEADS(p))
#define proves(p) as_leader(p)
#endif

#define takes_over_from(n) \
    :: d_step { unlocked && w[p].mode == MEMBER && \
                n != NAME(p) && leader != 0 && leader == row[n] && \
                STALLED(p, n) && AS_WATCHED(p, n) && row[NAME(p)] == w[p].ident -> \
                expire(n); new_leader(w[p].ident); skip }
#define expires(n) \
    :: d_step { may_lead(p) && n != NAME(p) && row[n] != 0 && STALLED(p, n) && AS_WATCHED(p, n) -> \
                proves(p); expire(n); skip }
#define assigns_to(n) /* assign_tokens */ \
    :: d_step { may_lead(p) && !LIVE_OWNER && ASSIGN_MAY_WRITE && row[n] != 0 -> \
                proves(p); old = row[n]; give(old, ASSIGN_RAISES); old = 0; skip }
/* revoke_tokens: to another, to nobody, to yet another; past a fence, for the owner stays */
#define revokes_to(n) \
    :: d_step { may_lead(p) && t_inc != 0 && t_next != n + 1 && \
                (n == NN || (row[n % NN] != 0 && row[n % NN] != t_inc)) -> \
                proves(p); t_next = n + 1; token_moved(); skip }
#define about_name(n) expires(n) assigns_to(n) revokes_to(n)
#if NN > 1
#define leading about_name(0) about_name(1) revokes_to(NN)
#else
#define leading about_name(0) revokes_to(NN)
#endif
#define withdraws /* revoke_tokens with null: it stays after all */ \
    :: d_step { may_lead(p) && t_next != 0 -> proves(p); t_next = 0; token_moved(); skip }

#define joinable(p) (unlocked && w[p].mode == JOINING && \
    (row[NAME(p)] == 0 || !w[p].watches_own || !w[p].same[NAME(p)] || \
     (STILL_STANDS(p) && STALLED(p, NAME(p)))))

proctype Process(byte p) {
    do
    /* its life */
    :: d_step { w[p].mode == OFF && !w[p].claim -> begin(p); skip }
    :: d_step { joinable(p) -> join(p, 0); skip }
    :: d_step { joinable(p) -> join(p, 1); skip }
    :: d_step { w[p].mode != OFF -> end_process(p); skip }
    :: d_step { unlocked && w[p].mode == MEMBER && w[p].hb == 0 && row[NAME(p)] == w[p].ident &&
                (!LETS_GO_FIRST || !w[p].claim) -> leave(p, 0); skip }
    :: d_step { unlocked && w[p].mode == MEMBER && w[p].hb == 0 && row[NAME(p)] == w[p].ident &&
                (!LETS_GO_FIRST || !w[p].claim) -> leave(p, 1); skip }
    /* heartbeats */
    /* sending earlier only shortens the lease, so else it is one step with the statement */
#ifdef NO_OBSERVE_FROM_ARRIVAL
    :: d_step { w[p].mode == MEMBER && w[p].hb == 0 -> w[p].hb = SENT; skip }
    :: d_step { w[p].hb == SENT -> beat(p); skip }
#else
    :: d_step { w[p].mode == MEMBER && w[p].hb == 0 && MY_ROW(p) -> beat(p); skip }
    :: d_step { w[p].mode == MEMBER && w[p].hb == 0 && !MY_ROW(p) ->
                beat(p); if :: FENCED(p) -> expired(p) :: else -> beat_answered(p) fi; skip }
#endif
    :: d_step { w[p].hb == BEATEN || (w[p].hb == NO_ROW && !FENCED(p)) -> beat_answered(p); skip }
    :: d_step { w[p].hb == NO_ROW && FENCED(p) -> expired(p); skip }
    /* the answer is lost: StoreUnavailable */
    :: d_step { w[p].hb != 0 -> end_heartbeat(p); skip }
    /* guard_lease, perhaps early */
    :: d_step { w[p].own != NOTHING -> forget(p); w[p].lease = 0; skip }
    /* readings and acknowledgements */
    :: d_step { w[p].mode == MEMBER && w[p].rd == 0 && row[NAME(p)] == w[p].ident &&
                !FROM_BEFORE_A_PLAN(p) -> read(p); skip }
    :: d_step { w[p].rd != 0 -> snapshot_read(p); skip }
#ifdef NO_READ_AND_ACK_IN_TURN            /* another task reads too */
    :: d_step { w[p].mode == MEMBER && w[p].rd != 0 && row[NAME(p)] == w[p].ident && MINE(p) &&
                t_next != 0 && MAY_ACT(p) ->
                w[p].own = REVOKING; w[p].own_right = 1; w[p].own_current = 1; skip }
#endif
    :: d_step { w[p].mode == MEMBER && w[p].own == REVOKING && w[p].own_current && UNUSED(p) &&
                !w[p].ack && IN_TURN(w[p].rd == 0) ->
                w[p].ack = 1; w[p].ack_current = 1; skip }
    :: d_step { unlocked && w[p].ack -> acknowledge(p, 1); skip }
    :: d_step { unlocked && w[p].ack -> acknowledge(p, 0); skip }      /* the answer is lost */
    :: d_step { w[p].ack -> w[p].ack = 0; w[p].ack_current = 0; skip } /* lost on the way */
    /* users */
    :: d_step { MAY_START(p) && MAY_ACT(p) && !w[p].claim && w[p].mode == MEMBER ->
                w[p].claim = 1; one_holder; skip }
    :: d_step { w[p].claim -> w[p].claim = 0; skip }
    :: d_step { w[p].claim && MAY_ACT(p) && w[p].f == 0 && w[p].mode == MEMBER &&
                (KEEP_FENCES || w[p].own_right) ->
                w[p].f = ASKED; w[p].f_right = w[p].own_right;
                if :: !KEEP_FENCES -> w[p].f = LOCKED; locks = locks + LOCKS :: else fi; skip }
    :: d_step { w[p].f == ASKED && FENCE_HOLDS(p) -> w[p].f = LOCKED; locks = locks + LOCKS; skip }
    :: d_step { w[p].f == LOCKED -> commit(p); end_transaction(p); skip }
    :: d_step { w[p].f != 0 -> end_transaction(p); skip }              /* rolled back, or refused */
#ifndef LEADER_APART
    /* leading */
    /* take_over from one that has no row */
    :: d_step { unlocked && w[p].mode == MEMBER && leader != w[p].ident && !live(leader) &&
                row[NAME(p)] == w[p].ident -> new_leader(w[p].ident); skip }
    takes_over_from(0)
#if NN > 1
    takes_over_from(1)
#endif
    leading
    withdraws
#ifdef GIVES
    :: d_step { may_lead(p) && t_inc != 0 && t_inc == w[p].ident && row[1 - p] != 0 &&
                t_next != 2 - p && w[p].own == OWNED && UNUSED_THERE(p) ->
                proves(p); hand_on(p); skip }
    :: d_step { plan == p + 1 -> commit_plan(p, 1); skip }
    :: d_step { plan == p + 1 -> commit_plan(p, 0); skip }             /* the answer is lost */
    :: d_step { plan == p + 1 -> plan = 0; skip }                      /* rolled back */
#endif
#ifdef NO_LOCK_AS_LEADER
    :: d_step { w[p].mode == MEMBER && leader != 0 && leader == w[p].ident && !w[p].led ->
                w[p].led = 1; skip }
#endif
#endif
    od
}

#ifdef LEADER_APART
proctype Leader(byte p) {
    do
    :: d_step { true -> observe(p); skip }
    leading
    withdraws
    od
}
#endif

/* A statement's time is bounded far below the lease: what has not answered by then is given up. */
inline end_heartbeat_of_clock(p) {
    w[p].hb = 0; w[p].hb_age = 0;
    for (j : 0 .. NN - 1) { w[p].ans[j] = MOVED }
}

proctype Clock() {
    do
    :: d_step {
        true ->
        for (i : 0 .. N - 1) {
            if :: w[i].lease > 0 -> w[i].lease-- :: else fi;
            if
            :: w[i].hb != 0 && w[i].hb_age < LEASE - 1 -> w[i].hb_age++
            :: w[i].hb != 0 && w[i].hb_age == LEASE - 1 -> end_heartbeat_of_clock(i)
            :: else
            fi;
            for (j : 0 .. NN - 1) {
                if
                :: w[i].stood[j] < LONGEST && (w[i].same[j] || KEEP_STANDING) -> w[i].stood[j]++
                :: else
                fi
            }
        }
        j = 0; skip
    }
    od
}

init {
    atomic {
        run Clock();
        for (i : 0 .. WORKERS - 1) { run Process(i) }
#ifdef LEADER_APART
        run Leader(WORKERS)
#endif
    }
}
