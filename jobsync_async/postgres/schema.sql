-- The tables of one cluster, as this version of the library makes them. `jobsync-async init --sql`
-- prints this, and what is in the folder expand, with your schema and prefix filled in. Running it
-- again changes nothing. Wall-clock columns are for people to read: nothing that decides who may
-- act looks at them.

-- The cluster: exactly one row. Its row lock orders every transaction that changes membership,
-- tokens or pins.
CREATE TABLE IF NOT EXISTS {cluster} (
    only_one          smallint PRIMARY KEY DEFAULT 1 CHECK (only_one = 1),
    -- the oldest layout that a worker may know: older ones are refused
    schema_version    integer NOT NULL,
    -- what the tables have; expanding them adds, and old workers go on
    layout            integer NOT NULL DEFAULT 1,
    total_tokens      integer NOT NULL CHECK (total_tokens BETWEEN 1 AND 1000000),
    hash_function     text NOT NULL,
    leader            text,                          -- name of the leading worker, for people
    leader_incarnation uuid,                         -- which start of it leads
    term              bigint NOT NULL DEFAULT 0,     -- raised whenever the leader changes
    -- raised by every change of membership, tokens or pins
    version           bigint NOT NULL DEFAULT 0,
    -- the version that was announced last: not all of them need to be
    announced         bigint NOT NULL DEFAULT 0,
    -- raised when commits may have been lost; high half of every epoch
    generation        bigint NOT NULL DEFAULT 1,
    pin_version       bigint NOT NULL DEFAULT 0,     -- version of the last change of a pin
    -- workers up to this age are counted in the last plan
    planned_joined    bigint NOT NULL DEFAULT 0,
    tokens_since      bigint,                        -- version of the first distribution
    last_joined       bigint NOT NULL DEFAULT 0,     -- the youngest worker's age number
    -- identity of the server that the generation was begun on
    server_identity   text,
    -- on which changes are announced; null: the prefix and "changes"
    channel           text,
    -- in which the cluster's date is read off the server's clock
    time_zone         text,
    -- bound on heartbeat_timeout_sec: a new generation waits so long
    longest_wait      double precision,
    -- bound on heartbeat_timeout_sec: a worker above it is refused
    longest_allowed   double precision,
    created_at        timestamptz NOT NULL DEFAULT now(),
    -- since when nothing new is started, by whom and why; null: it is
    paused_at         timestamptz,
    paused_by         text,
    pause_reason      text
);

-- A worker. There is no index on last_heartbeat or beat, so that a heartbeat is a HOT update.
CREATE TABLE IF NOT EXISTS {node} (
    name              text PRIMARY KEY,
    -- random, one per start; tokens are owned by it
    incarnation       uuid NOT NULL,
    joined            bigint NOT NULL,               -- age order: the lowest is the oldest
    created_on        timestamptz NOT NULL DEFAULT now(),
    last_heartbeat    timestamptz NOT NULL DEFAULT now(),
    beat              bigint NOT NULL DEFAULT 0,     -- how many heartbeats; what others watch
    weight            double precision NOT NULL DEFAULT 1,
    state             text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'draining')),
    address           text,                          -- what it announced for routing
    host              text,
    pid               integer,
    -- with pid_namespace: which workers can see each other's processes
    boot_id           text,
    pid_namespace     text,
    process_started   bigint,                        -- with pid: which process, for ever
    -- in the application_name of each of its sessions
    session_tag       text,
    -- revoked tokens that are not let go of: [{{"token_id", "task_id"}}, ...]
    stuck             jsonb,
    -- its heartbeat_timeout_sec: by which everybody judges it
    timeout_sec       double precision,
    interval_sec      double precision,              -- its heartbeat_interval_sec
    library           text,                          -- version of jobsync_async; null is 0.1.0
    -- the newest layout of the tables that it knows; null is 1
    layout            integer,
    -- what it runs: [{{"kind", "name", "date"}}, ...], null where it does not say
    runs              jsonb,
    -- the incarnation that wrote the last five: an older library leaves them
    said_by           uuid
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX IF NOT EXISTS {node_owner_idx} ON {node} (incarnation);

-- A worker that was evicted: none of this name joins until the row is gone. What it owned stays its
-- own under another name, until its lease must be over.
CREATE TABLE IF NOT EXISTS {evicted} (
    name              text PRIMARY KEY,
    at                timestamptz NOT NULL DEFAULT now(),
    by                text NOT NULL,
    reason            text,
    incarnation       uuid                           -- which start of it; null: there was none
);

-- A token. Rows are made by the first distribution and never deleted.
CREATE TABLE IF NOT EXISTS {token} (
    token_id          integer PRIMARY KEY,
    node              text,                          -- name of the owner, null for nobody
    incarnation       uuid,                          -- which start of it owns the token
    -- fencing number: raised with every change of owner
    epoch             bigint NOT NULL,
    -- set while being revoked: who gets it, '' for nobody
    next_node         text,
    -- the cluster's version at its last change, 0 for tokens_since
    version           bigint NOT NULL,
    assigned_at       timestamptz NOT NULL DEFAULT now(),
    revoked_at        timestamptz
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS {token_version_idx} ON {token} (version) WHERE version > 0;
CREATE INDEX IF NOT EXISTS {token_next_node_idx} ON {token} (next_node) WHERE next_node IS NOT NULL;

-- A pin: this task is to run on a worker whose name matches. task_key is the SHA-256 of task_id, so
-- that ids of any length have one; token_id is what the task hashes to, kept to find pins that
-- share a token.
CREATE TABLE IF NOT EXISTS {lock} (
    task_key          bytea PRIMARY KEY,
    task_id           text NOT NULL,
    token_id          integer NOT NULL,
    -- list of SQL LIKE patterns, in order of preference
    node_patterns     jsonb NOT NULL,
    reason            text,
    created_at        timestamptz NOT NULL DEFAULT now(),
    created_by        text,
    expires_at        timestamptz
);
CREATE INDEX IF NOT EXISTS {lock_token_id_idx} ON {lock} (token_id);
CREATE INDEX IF NOT EXISTS {lock_expires_at_idx} ON {lock} (expires_at)
    WHERE expires_at IS NOT NULL;

-- A task that was begun: the last beginning per task and date.
CREATE TABLE IF NOT EXISTS {claim} (
    date              date NOT NULL,
    task_key          bytea NOT NULL,
    task_id           text NOT NULL,
    token_id          integer NOT NULL,
    node              text NOT NULL,
    epoch             bigint NOT NULL,
    claimed_at        timestamptz NOT NULL DEFAULT now(),
    error             text,                          -- set when every attempt failed
    -- name of the batch; its key is of name and id, null is none
    batch             text,
    incarnation       uuid,                          -- the start of the worker that began it
    open              boolean,                       -- begun, and not ended in order by that worker
    -- how many of its workers ended while it was open
    owners_lost       integer NOT NULL DEFAULT 0,
    set_aside_at      timestamptz,                   -- when it was set aside
    failures          integer NOT NULL DEFAULT 0,    -- how often its handler failed on that date
    last_error        text,                          -- of the last of these, given up or not
    PRIMARY KEY (date, task_key)
);
-- What was given up, found without a look at all that was begun on that date: for people alone. A
-- table that was there before, and is large, goes without it.
CREATE INDEX IF NOT EXISTS {claim_failed_idx} ON {claim} (date, task_key) WHERE error IS NOT NULL;

-- A task of a batch that is not begun any more on any date, until it is released: its workers ended
-- while they were at work on it.
CREATE TABLE IF NOT EXISTS {set_aside} (
    task_key          bytea PRIMARY KEY,
    task_id           text NOT NULL,
    batch             text,                          -- name of the batch, null is none
    date              date NOT NULL,                 -- of the run in which that happened
    owners_lost       integer NOT NULL,
    reason            text NOT NULL,
    set_aside_at      timestamptz NOT NULL DEFAULT now()
);

-- A task that was completed: at most once per date.
CREATE TABLE IF NOT EXISTS {audit} (
    date              date NOT NULL,
    task_key          bytea NOT NULL,
    task_id           text NOT NULL,
    token_id          integer NOT NULL,
    node              text NOT NULL,
    epoch             bigint NOT NULL,
    completed_at      timestamptz NOT NULL DEFAULT now(),
    batch             text,                          -- name of the batch, null is none
    PRIMARY KEY (date, task_key)
);

-- A batch on one date: one that was begun and not finished is open, and whoever runs it without a
-- date continues it. batch_key is the SHA-256 of its name, or of its ids where it has none.
CREATE TABLE IF NOT EXISTS {batch} (
    batch_key         bytea NOT NULL,
    date              date NOT NULL,
    name              text,
    total             bigint,                        -- how many ids, where that is known
    started_at        timestamptz NOT NULL DEFAULT now(),
    started_by        text NOT NULL,
    finished_at       timestamptz,
    -- of its ids, whatever its name; where they are a stream, of those up to the present portion
    ids_key           bytea,
    before_key        bytea,                         -- of a stream's ids before that portion
    -- it was begun over other ids too, or at two places of a stream: what is counted tells nothing
    mixed             boolean NOT NULL DEFAULT false,
    clean             boolean,                       -- nothing of it was complete before it
    -- how many ids were completed in it before it was opened for the last time
    completed_before  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (batch_key, date)
);

-- What one start of a worker has done of a run: together they tell how far it is, without a look at
-- its ids. Written with what it counts.
CREATE TABLE IF NOT EXISTS {batch_part} (
    batch_key         bytea NOT NULL,
    date              date NOT NULL,
    incarnation       uuid NOT NULL,
    node              text NOT NULL,
    completed         bigint NOT NULL DEFAULT 0,
    otherwise         bigint NOT NULL DEFAULT 0,     -- about how many are done with in another way
    -- where it is in a stream of ids: the key of those up to its portion, and how many these are
    ids_key           bytea,
    taken             bigint,
    PRIMARY KEY (batch_key, date, incarnation)
) WITH (fillfactor = 50);

-- A distribution: what the leader changed, and why.
CREATE TABLE IF NOT EXISTS {rebalance} (
    version           bigint PRIMARY KEY,
    at                timestamptz NOT NULL DEFAULT now(),
    reason            text NOT NULL,
    leader            text NOT NULL,
    term              bigint NOT NULL,
    nodes_before      integer NOT NULL,
    nodes_after       integer NOT NULL,
    tokens_moved      integer NOT NULL,
    duration_ms       double precision NOT NULL,
    -- numbers of the rows of history that it answers; null where a library of before wrote it
    causes            bigint[],
    -- from whom to whom how many tokens go, the largest first: [{{"from", "to", "tokens"}}, ...]
    moves             jsonb
);

-- What happened to the cluster: each change of membership, each change of the leader, and what
-- people did. For people alone. Each row is written in the transaction of the change that it tells
-- of, so that it is there exactly if the change is. Old rows go by age.
CREATE TABLE IF NOT EXISTS {history} (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at                timestamptz NOT NULL DEFAULT now(),
    -- the cluster's: the one that the change took, or else the present one
    version           bigint NOT NULL,
    -- joined, left, died, expired, evicted, drained, undrained, 'took over', generation, and acts of
    -- people: allowed, paused, resumed, pinned, unpinned, retried, released
    kind              text NOT NULL,
    node              text,                          -- the worker it is about, null: all of them
    incarnation       uuid,                          -- which start of it
    -- the worker that saw or did it, or the person who asked
    by                text,
    term              bigint,                        -- the one that begins with it
    reason            text,                          -- why, in words
    -- since its last heartbeat, by the server's clock
    silent_sec        double precision,
    details           jsonb
);
CREATE INDEX IF NOT EXISTS {history_at_idx} ON {history} (at);
CREATE INDEX IF NOT EXISTS {history_version_idx} ON {history} (version);
CREATE INDEX IF NOT EXISTS {history_term_idx} ON {history} (term) WHERE term IS NOT NULL;
CREATE INDEX IF NOT EXISTS {history_gone_idx} ON {history} (incarnation)
    WHERE kind IN ('left', 'died', 'expired', 'evicted');
