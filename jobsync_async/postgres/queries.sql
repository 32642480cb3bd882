-- Every statement of this library. Each has a name and a line on its purpose. Tables appear as
-- {table}; parameters as %(name)s. What safety rests on stands in the WHERE clauses, and the number
-- of rows is the answer.
--
-- {server} is the identity of the server that answers, made of what its profile reads there:
-- core/server_profile.py.
-- {sound} is true for the cluster row when it was begun on this very server, and that is what the
-- worker has adopted: nothing acts without it. {announces} is false while the server's queue of
-- notifications is full. {timeout} and {interval} are what a worker's row `n` says of its times. A
-- row that an older library made says none, also where it took one over that did: its timeout
-- counts as the bound of the cluster's row `c`. {place} is the place of the token `t` in the list
-- of tokens, which is in order, and {receiver} the number of its receiver. {silence} is for how long
-- the worker's row `n` has had no heartbeat, by the server's clock, for people. `by` is the name of
-- whoever sends the statement. What changes who is in the cluster, or who leads, writes that into
-- the history itself: so a row is there exactly if its change was committed.

-- name: pinned
-- What the statements rely on, whatever role, database or server set by default; those that this
-- server does not know are left out. This is the whole list, for sessions, and for transactions
-- behind a pooler. What is not in it, the statements bear: tests/integration/test_settings.py runs
-- a cluster under an unusual value of every setting that there is. Left as they are:
-- default_transaction_read_only, for whoever sets it means it; and what says where rows are stored.
(VALUES
    -- Names: none is a stranger's.
    ('search_path', 'pg_catalog'),
    -- How long something may take. The first three are bounds of ours. Another's would end what
    -- waits in order: a listener is idle for as long as nothing happens.
    ('statement_timeout', %(statement_ms)s),
    ('lock_timeout', %(lock_ms)s),
    ('idle_in_transaction_session_timeout', %(idle_ms)s),
    ('transaction_timeout', '0'),
    ('idle_session_timeout', '0'),
    -- The isolation that they are written for: what is read after a lock was taken is the latest
    -- state.
    ('default_transaction_isolation', 'read committed'),
    -- What was acknowledged survives a crash.
    ('synchronous_commit',
     pg_catalog.replace(pg_catalog.current_setting('synchronous_commit'), 'off', 'on')),
    -- How values are written and read as text. The driver escapes bytes by the first of them, in
    -- parameters too, where nobody takes that back; a NULL in an array that is written as text
    -- would be a text; a weight would be rounded.
    ('standard_conforming_strings', 'on'),
    ('array_nulls', 'on'),
    ('transform_null_equals', 'off'),
    ('bytea_output', 'hex'),
    ('extra_float_digits', '1'),
    ('DateStyle', 'ISO, MDY'),
    ('IntervalStyle', 'postgres'),
    ('TimeZone', 'UTC'),
    -- Rows that a policy hides would be taken for rows that are not there: an error is raised
    -- instead, which names the table.
    ('row_security', 'off'),
    -- An error ends a statement, not the session; and nobody reads what the server says beside its
    -- answers.
    ('exit_on_error', 'off'),
    ('client_min_messages', 'warning'),
    -- New tables have rows that can be locked.
    ('default_table_access_method', 'heap'),
    -- Plans. The tables are small and in memory, so that a row found by an index costs little; to
    -- compile a plan, or to start a process for a part of it, takes longer than any of them. The
    -- statistics are older than what is asked for: those of the night know no row of today, and
    -- those of a hand-off say that half of the tokens are on their way. So a table is read as a
    -- whole only where no index serves. Lists of tokens are sorted and hashed in memory.
    ('plan_cache_mode', %(plans)s),
    ('random_page_cost', '1.1'),
    ('seq_page_cost', '1'),
    ('cpu_tuple_cost', '0.01'),
    ('cpu_index_tuple_cost', '0.005'),
    ('cpu_operator_cost', '0.0025'),
    ('jit', 'off'),
    ('geqo', 'off'),
    ('max_parallel_workers_per_gather', '0'),
    ('work_mem', pg_catalog.concat(
        greatest(pg_catalog.pg_size_bytes(pg_catalog.current_setting('work_mem')), 4194304), 'B')),
    ('enable_bitmapscan', 'on'),
    ('enable_hashagg', 'on'),
    ('enable_hashjoin', 'on'),
    ('enable_indexonlyscan', 'on'),
    ('enable_indexscan', 'on'),
    ('enable_material', 'on'),
    ('enable_mergejoin', 'on'),
    ('enable_nestloop', 'on'),
    ('enable_seqscan', 'off'),
    ('enable_sort', 'on')
) AS settings (name, value)
WHERE pg_catalog.current_setting(name, true) IS NOT NULL

-- name: prepare_session
-- Once per connection. Until then any name may be a stranger's: what is used here says whose it is.
-- Comes back: which server this is.
SELECT pg_catalog.count(pg_catalog.set_config(name, value, false)), {server} AS server FROM {pinned}

-- name: bound_transaction
-- The same behind a pooler, where a session is not ours to set up: for one transaction.
SELECT pg_catalog.count(pg_catalog.set_config(name, value, true)) FROM {pinned}

-- name: read_committed
-- First statement of such a transaction: the isolation that the statements are written for.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED

-- name: read_identity
-- Does this server say which it is?
SELECT {server} AS server

-- name: read_recorded
-- The identity that the cluster was begun on, and that of this server.
SELECT server_identity AS recorded, {server} || '/' || tableoid AS actual FROM {cluster}

-- name: ask_system
-- These ask for one reading each, to find out which one is refused, also where no name is pinned
-- yet. In recovery no position is known.
SELECT system_identifier FROM pg_catalog.pg_control_system()

-- name: ask_position
SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_lsn() END

-- name: ask_file
SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery()
            THEN pg_catalog.pg_walfile_name('0/1000000') END

-- name: ask_started
SELECT pg_catalog.pg_postmaster_start_time()

-- name: ask_aurora
-- Only Aurora has it, and not in its list of functions: so it is called. Names are pinned by then.
SELECT aurora_version() AS version

-- name: say_something
-- Does a connection still work?
SELECT

-- name: inspect_server
-- What start needs to know of the server, before anything is pinned.
SELECT pg_catalog.current_schema() AS schema,
       pg_catalog.pg_is_in_recovery()
           OR pg_catalog.current_setting('transaction_read_only')::boolean AS read_only,
       pg_catalog.current_setting('server_encoding') AS encoding,
       pg_catalog.current_setting('server_version_num')::integer AS version,
       pg_catalog.current_setting('application_name') AS name

-- name: restore_search_path
-- Until the end of the transaction, names lead where they led before: where jobsync, which
-- qualifies none, finds its tables.
SELECT pg_catalog.set_config(name, reset_val, true) FROM pg_catalog.pg_settings
WHERE name OPERATOR(pg_catalog.=) 'search_path'

-- name: find_table
-- The schema in which a table is found. On that path: no name in here is left to it.
SELECT n.nspname AS schema
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%(table)s)

-- name: table_exists
SELECT to_regclass(%(table)s) IS NOT NULL

-- name: size_of_table
-- In bytes.
SELECT pg_relation_size(to_regclass(%(table)s)) AS size

-- name: may_create
-- Whether this role may create tables in the schema; null when the schema does not exist.
SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %(schema)s

-- name: role_exists
SELECT 1 FROM pg_roles WHERE rolname = %(role)s

-- name: lock_schema
-- One process at a time creates or upgrades the tables; whether it is this one.
SELECT pg_try_advisory_xact_lock(hashtextextended(%(key)s, 0))

-- name: await_schema
-- Until whoever does it is done. All that wait go on together: one after the other, hundreds would
-- take longer than each has.
SELECT pg_advisory_xact_lock_shared(hashtextextended(%(key)s, 0))

-- name: hold_schema
-- The same where it is waited for, for as long as the transaction's lock_timeout.
SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 0))

-- name: who_locks
-- Who has a lock on a table, the oldest transaction first: a prepared one has no process.
SELECT l.pid, coalesce(nullif(a.application_name, ''), a.backend_type) AS application, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::double precision AS seconds
FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
WHERE l.granted AND l.relation = to_regclass(%(table)s) AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY a.xact_start NULLS FIRST LIMIT 1

-- name: read_settings
-- Some by way of JSON: tables of 0.1.0 have no such columns.
SELECT schema_version, total_tokens, hash_function, server_identity,
       coalesce((to_jsonb(c) ->> 'layout')::integer, 1) AS layout,
       to_jsonb(c) ->> 'channel' AS channel, to_jsonb(c) ->> 'time_zone' AS time_zone
FROM {cluster} c

-- name: left_over
-- What other tables kept when the cluster's row was lost, or deleted by hand: the new row begins
-- above all of it, so that no number comes twice, and whoever still knows the old row finds out.
-- Nothing is left over in new tables.
(SELECT coalesce(max(epoch) >> 32, 0) AS generation, coalesce(max(version), 0) AS version
 FROM {token}) tokens,
(SELECT greatest((SELECT max(version) FROM {rebalance}), (SELECT max(version) FROM {history}), 0)
    AS version) told,
(SELECT coalesce(max(joined), 0) AS joined FROM {node}) nodes

-- name: insert_cluster
-- The first start makes the row, with the identity that it is begun on; all others find it.
INSERT INTO {cluster} (schema_version, layout, total_tokens, hash_function, channel, generation,
                       version, last_joined, server_identity)
SELECT %(schema_version)s, %(layout)s, %(total_tokens)s, %(hash_function)s, %(channel)s,
       tokens.generation + 1, greatest(tokens.version, told.version), nodes.joined,
       {server} || '/' || to_regclass(%(cluster)s)::oid
FROM {left_over}
ON CONFLICT DO NOTHING

-- name: set_time_zone
-- The first worker that compares it writes it. Fails where this server does not know the name.
UPDATE {cluster} SET time_zone = %(time_zone)s
WHERE time_zone IS NULL AND now() AT TIME ZONE %(time_zone)s::text IS NOT NULL

-- name: take_version
-- First statement of a transaction that changes membership, tokens or pins: takes the row lock that
-- orders them all, and the next version; the announcement goes out with the commit. What is read
-- after it is the latest committed state. Here and elsewhere, what cannot be announced does not
-- count as announced, so that nobody takes it for missed.
WITH taken AS (
    UPDATE {cluster}
    SET version = version + 1,
        announced = CASE WHEN {announces} THEN version + 1 ELSE announced END
    WHERE {sound}
    RETURNING version, leader_incarnation, generation
)
SELECT version, leader_incarnation, generation,
       CASE WHEN {announces} THEN pg_notify(%(channel)s, version::text) END AS pg_notify
FROM taken

-- name: lock_cluster
-- The same lock, where what follows takes the version.
SELECT version FROM {cluster} WHERE {sound} FOR UPDATE

-- == failover of the server =======================================================================

-- name: read_server
-- What the cluster was begun on, and what this is; null when the row is missing.
SELECT c.server_identity AS recorded,
       coalesce(%(here)s::text, {server}) || '/' || c.tableoid AS actual,
       coalesce(c.generation, 0) AS generation, coalesce(c.version, 0) AS version,
       extract(epoch FROM pg_postmaster_start_time())::text AS running_since,
       c.longest_wait, c.total_tokens, c.hash_function
FROM (VALUES (1)) AS always (one) LEFT JOIN {cluster} c ON true

-- name: restore_cluster
-- The row is missing where a running worker looks: a fresh database. It is begun on nothing yet.
INSERT INTO {cluster} (schema_version, layout, total_tokens, hash_function, channel, time_zone,
                       generation, version, last_joined, longest_wait, longest_allowed)
SELECT %(schema_version)s, %(layout)s, %(total_tokens)s, %(hash_function)s, %(channel)s,
       %(time_zone)s, tokens.generation + 1, greatest(tokens.version, told.version),
       nodes.joined, %(waited)s, %(waited)s
FROM {left_over}
ON CONFLICT DO NOTHING

-- name: condemn_history
-- Row and server agree, so others may act, but on a history that a worker has been beyond: from now
-- on nobody does, so that no lease is extended while the wait before the next generation lasts.
-- Whoever begins that one begins it above what was seen. The same for a row that was begun by
-- readings which the server refuses by now: whoever has asked before may act on it still.
UPDATE {cluster}
SET server_identity = NULL, generation = greatest(generation, %(known_generation)s::bigint)
WHERE server_identity = %(recorded)s::text AND generation = %(seen_generation)s::bigint
  AND (%(unreadable)s OR server_identity = coalesce(%(here)s::text, {server}) || '/' || tableoid)

-- name: begin_generation
-- Begins anew on this server: only over the row that was waited upon (null: there was none), for as
-- long as its bound asks, and above all that is known. The jump is random: two servers that were
-- promoted from one state, neither of which knows of the other's generation, would begin the same
-- one. Nobody leads any more.
WITH begun AS (
    UPDATE {cluster}
    SET generation = greatest(generation, %(known_generation)s::bigint)
            + 1 + floor(random() * 65536)::bigint,
        server_identity = coalesce(%(here)s::text, {server}) || '/' || tableoid,
        version = greatest(version, %(known_version)s::bigint) + 1,
        pin_version = greatest(version, %(known_version)s::bigint) + 1,
        announced = CASE WHEN {announces} THEN greatest(version, %(known_version)s::bigint) + 1
                         ELSE announced END,
        leader = NULL, leader_incarnation = NULL, term = term + 1, longest_wait = %(waited)s
    WHERE server_identity IS NOT DISTINCT FROM %(recorded)s::text
      AND (%(actual)s::text IS NULL OR (generation = %(seen_generation)s::bigint
           AND longest_wait IS NOT DISTINCT FROM %(seen_wait)s::double precision
           AND %(actual)s::text = coalesce(%(here)s::text, {server}) || '/' || tableoid))
    RETURNING version, generation, term, server_identity
), told AS (
    INSERT INTO {history} (version, kind, by, term, reason, details)
    SELECT version, 'generation', %(by)s, term, %(reason)s, jsonb_build_object(
               'generation', generation, 'server', server_identity,
               'server_before', %(recorded)s::text,
               'workers', (SELECT json_agg(name ORDER BY joined) FROM {node}))
    FROM begun
)
SELECT version, generation,
       CASE WHEN {announces} THEN pg_notify(%(channel)s, version::text) END AS pg_notify
FROM begun

-- name: free_all_tokens
-- Nobody's, under epochs of the new generation. A token that a fence locks follows when the leader
-- finds the lock gone.
UPDATE {token}
SET node = NULL, incarnation = NULL, epoch = %(generation)s::bigint << 32, next_node = NULL,
    version = %(version)s, revoked_at = NULL
WHERE ctid = ANY(ARRAY(SELECT ctid FROM {token} FOR UPDATE SKIP LOCKED))

-- name: delete_all_nodes
-- Every worker joins anew, which nothing but this server's history can have told it to be in the
-- way of.
DELETE FROM {node}

-- == membership ===================================================================================

-- name: read_node
-- Who has a name, whether it was evicted, and which timeout a worker may have. Without a lock: what
-- is written then says whom it replaces.
SELECT n.incarnation, n.beat, concat_ws(' ', 'on host', n.host, 'with pid', n.pid) AS holder,
       n.host, n.pid, n.boot_id, n.pid_namespace, n.process_started, n.session_tag,
       {timeout} AS timeout_sec, {interval} AS interval_sec, c.longest_allowed,
       e.at AS evicted_at, e.by AS evicted_by, e.reason AS evicted_reason
FROM (
    SELECT longest_wait, {sound} AS sound, CASE WHEN {sound} THEN longest_allowed END
           AS longest_allowed
    FROM {cluster}
) c
LEFT JOIN {node} n ON n.name = %(name)s LEFT JOIN {evicted} e ON e.name = %(name)s AND c.sound

-- name: take_version_to_join
-- The same as take_version, and the next number in the order of joining. The first worker sets the
-- bound on timeouts. Where others have joined and there is none, they are of a library that writes
-- none.
WITH taken AS (
    UPDATE {cluster}
    SET version = version + 1,
        announced = CASE WHEN {announces} THEN version + 1 ELSE announced END,
        last_joined = last_joined + 1,
        longest_wait = coalesce(
            longest_wait,
            CASE last_joined WHEN 0 THEN %(timeout_sec)s ELSE %(unsaid_bound)s END),
        longest_allowed = coalesce(
            longest_allowed, longest_wait,
            CASE last_joined WHEN 0 THEN %(timeout_sec)s ELSE %(unsaid_bound)s END)
    WHERE {sound}
    RETURNING version, last_joined
)
SELECT version, last_joined,
       CASE WHEN {announces} THEN pg_notify(%(channel)s, version::text) END AS pg_notify
FROM taken

-- name: insert_node
-- A join under a free name, in one message with take_version_to_join before it and
-- lead_if_nobody_does after it: no row when somebody else has the name by then, when it was
-- evicted, when its timeout is above the bound, or when what the first one found was not sound.
WITH made AS (
    INSERT INTO {node} (name, incarnation, joined, state, weight, address, host, pid, boot_id,
                        pid_namespace, process_started, session_tag, timeout_sec, interval_sec,
                        library, layout, runs, said_by)
    SELECT %(name)s, %(incarnation)s::uuid, c.last_joined, %(state)s, %(weight)s::double precision,
           %(address)s, %(host)s, %(pid)s::integer, %(boot_id)s, %(pid_namespace)s,
           %(process_started)s::bigint, %(session_tag)s, %(timeout_sec)s::double precision,
           %(interval_sec)s::double precision, %(library)s, %(layout)s::integer, '[]',
           %(incarnation)s::uuid
    FROM (
        SELECT last_joined FROM {cluster}
        WHERE {sound} AND longest_allowed >= %(timeout_sec)s::double precision
          AND NOT EXISTS (SELECT FROM {evicted} WHERE name = %(name)s)
    ) c
    ON CONFLICT (name) DO NOTHING RETURNING joined
), told AS (
    INSERT INTO {history} (version, kind, node, incarnation, by, reason, details)
    SELECT version, 'joined', %(name)s, %(incarnation)s::uuid, %(by)s, %(reason)s, %(about)s::jsonb
    FROM made CROSS JOIN {cluster}
)
SELECT joined FROM made

-- name: replace_node
-- A join under the name of an incarnation whose beat stood still, or that is known dead: only if it
-- still stands, it was not evicted, and within the bound. The history is told of the row as it was
-- before.
WITH replaced AS (
    UPDATE {node}
    SET incarnation = %(incarnation)s, joined = %(joined)s, beat = beat + 1, created_on = now(),
        last_heartbeat = now(), state = %(state)s, weight = %(weight)s, address = %(address)s,
        host = %(host)s, pid = %(pid)s, boot_id = %(boot_id)s, pid_namespace = %(pid_namespace)s,
        process_started = %(process_started)s, session_tag = %(session_tag)s, stuck = NULL,
        timeout_sec = %(timeout_sec)s, interval_sec = %(interval_sec)s, library = %(library)s,
        layout = %(layout)s, runs = '[]', said_by = %(incarnation)s
    WHERE name = %(name)s AND incarnation = %(old_incarnation)s AND beat = %(old_beat)s
      AND EXISTS (SELECT FROM {cluster} WHERE longest_allowed >= %(timeout_sec)s::double precision)
      AND NOT EXISTS (SELECT FROM {evicted} WHERE name = %(name)s)
    RETURNING name, incarnation
)
INSERT INTO {history} (version, kind, node, incarnation, by, reason, silent_sec, details)
SELECT %(version)s, 'joined', r.name, r.incarnation, %(by)s,
       'started again: the start before ended without leaving', {silence},
       %(about)s::jsonb || jsonb_build_object('replaced', n.incarnation)
FROM replaced r JOIN {node} n USING (name)

-- name: inherit_tokens
-- A restarted worker takes over what its old incarnation owned, under new epochs. A token that a
-- fence locks is left to the old incarnation, and so to nobody, until the leader finds the lock
-- gone.
UPDATE {token}
SET incarnation = %(incarnation)s, epoch = epoch + 1, version = %(version)s, assigned_at = now()
WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM {token} WHERE incarnation = %(old_incarnation)s FOR UPDATE SKIP LOCKED))

-- name: lead_if_nobody_does
-- The leader's row is gone, or there never was one: the oldest worker leads, under the next term.
WITH led AS (
    UPDATE {cluster} c SET leader = n.name, leader_incarnation = n.incarnation, term = c.term + 1
    FROM (
        SELECT n.name, n.incarnation, b.leader, b.leader_incarnation
        FROM {node} n, {cluster} b ORDER BY n.joined LIMIT 1
    ) n
    WHERE NOT EXISTS (SELECT FROM {node} WHERE incarnation = c.leader_incarnation) AND {sound}
    RETURNING c.version, c.term, c.leader, c.leader_incarnation,
              n.leader AS before, n.leader_incarnation AS incarnation_before
)
{tell_who_leads}

-- name: tell_who_leads
-- Part of others: who leads from now on, by `led`, and in whose place.
INSERT INTO {history} (version, kind, node, incarnation, by, term, reason, details)
SELECT version, 'took over', leader, leader_incarnation, %(by)s, term,
       coalesce('in place of ' || before, 'nobody led'),
       jsonb_build_object('before', before, 'incarnation_before', incarnation_before)
FROM led

-- name: tell_gone
-- Part of others: workers are not in the cluster any more, by `gone`. The version of that is taken,
-- or it is the next one.
INSERT INTO {history} (version, kind, node, incarnation, by, reason, silent_sec)
SELECT CASE WHEN %(taken)s THEN version ELSE version + 1 END,
       kind, name, incarnation, %(by)s, reason, silent_sec
FROM gone CROSS JOIN {cluster}

-- name: heartbeat
-- The proof of life, in one statement: no row means that this incarnation was expired or replaced,
-- or that the server was, or that the cluster is older than what was seen of it. The answer carries
-- what each worker needs to notice a missed notification and a leader that stands still, and the
-- timeout that it left in the row. Beats come in order of age, with their workers' times.
WITH me AS (
    UPDATE {node} SET beat = beat + 1, last_heartbeat = clock_timestamp()
    WHERE name = %(name)s AND incarnation = %(incarnation)s
      AND EXISTS (SELECT FROM {cluster} WHERE {sound} AND version >= %(version)s)
    RETURNING joined, incarnation, timeout_sec, said_by
)
SELECT c.version, c.announced, c.term, c.leader_incarnation, c.longest_wait,
       {timeout} AS timeout_sec,
       (SELECT count(*) FROM {node} older
        WHERE older.joined < n.joined
          AND older.incarnation IS DISTINCT FROM c.leader_incarnation) AS rank,
       watched.names, watched.incarnations, watched.beats, watched.timeouts, watched.intervals,
       watched.leader_age
FROM me n CROSS JOIN {cluster} c CROSS JOIN LATERAL (
    SELECT array_agg(n.name ORDER BY n.joined) AS names,
           array_agg(n.incarnation ORDER BY n.joined) AS incarnations,
           array_agg(n.beat ORDER BY n.joined) AS beats,
           array_agg({timeout} ORDER BY n.joined) AS timeouts,
           array_agg({interval} ORDER BY n.joined) AS intervals,
           max(extract(epoch FROM clock_timestamp() - n.last_heartbeat)::double precision)
               FILTER (WHERE n.incarnation = c.leader_incarnation) AS leader_age
    FROM {node} n WHERE %(watch_all)s OR n.incarnation = c.leader_incarnation
) watched

-- name: read_beats
-- Everybody's beats, oldest first; none where the server is another one.
SELECT n.name, n.incarnation, n.beat, {timeout} AS timeout_sec, {interval} AS interval_sec
FROM (SELECT longest_wait FROM {cluster} WHERE {sound}) c CROSS JOIN {node} n ORDER BY n.joined

-- name: set_state
-- By name, so that it can be asked for from anywhere; a worker that says it of itself names its
-- incarnation too.
WITH changed AS (
    UPDATE {node} SET state = %(state)s WHERE name = %(name)s AND state <> %(state)s
      AND incarnation = coalesce(%(incarnation)s::uuid, incarnation)
    RETURNING name, incarnation
)
INSERT INTO {history} (version, kind, node, incarnation, by, reason)
SELECT version, CASE %(state)s WHEN 'draining' THEN 'drained' ELSE 'undrained' END,
       name, incarnation, %(by)s, %(reason)s
FROM changed CROSS JOIN {cluster}

-- name: free_tokens_of
-- What a leaving worker still owns has no owner from then on. A token that a fence locks follows
-- when the leader finds the lock gone.
UPDATE {token}
SET node = NULL, incarnation = NULL, epoch = epoch + 1, next_node = NULL, version = %(version)s,
    revoked_at = NULL
WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM {token} WHERE incarnation = %(incarnation)s FOR UPDATE SKIP LOCKED))

-- name: delete_node
-- Whatever its row is called: that of a worker that was evicted has another name.
WITH gone AS (
    DELETE FROM {node} WHERE incarnation = %(incarnation)s
    RETURNING name, incarnation, 'left' AS kind, %(reason)s::text AS reason,
              NULL::double precision AS silent_sec
)
{tell_gone}

-- == the worker's own tokens ======================================================================

-- name: read_version
-- Has anything changed? For workers that cannot listen, and while nothing can be announced. Then it
-- also asks how full the queue of notifications is: PostgreSQL clears what all have read when
-- somebody asks.
SELECT version, CASE WHEN NOT {announces} THEN pg_notification_queue_usage() END AS queue_usage
FROM {cluster}

-- name: read_changes
-- One atomic read: the cluster, the own row and the tokens changed since. Versions are taken under
-- one row lock and so commit in order: every change up to the version that is seen here is seen
-- here. Rows that are as the first distribution made them have version 0, and changed at
-- tokens_since. Thousands of tokens share few epochs and versions: they come grouped. It is planned
-- once for all values, so it says what the planner cannot see: by its two bounds, that few rows are
-- above a version; and by `version > 0`, that the partial index has them. The workers of this host
-- come along when there are others than were seen last. How many there are and how old the youngest
-- is tells: ages are never given twice. They are this one and the next after it in the ring, for it
-- watches few; of its own process no other, for those die with it; and such as it cannot see only
-- where there are not enough others.
SELECT c.version, c.term, c.leader_incarnation, c.paused_at, c.paused_by, c.pause_reason,
       n.state, host.crowd, host.members, host.youngest,
       CASE WHEN host.members <> %(members)s OR host.youngest <> %(youngest)s THEN (
           SELECT json_agg(json_build_array(near.name, near.incarnation, near.boot_id,
                                            near.pid_namespace, near.host, near.pid,
                                            near.process_started, near.session_tag)
                           ORDER BY near.joined)
           FROM (
               SELECT o.* FROM {node} o
               WHERE o.boot_id = n.boot_id AND (o.joined = n.joined
                     OR (o.pid_namespace, o.host, o.pid, o.process_started)
                         IS DISTINCT FROM (n.pid_namespace, n.host, n.pid, n.process_started))
               ORDER BY o.joined <> n.joined,
                        (o.pid_namespace, o.host) IS DISTINCT FROM (n.pid_namespace, n.host),
                        o.joined < n.joined, o.joined
               LIMIT %(most_told)s
           ) near
       ) END AS neighbours,
       n.joined <= c.planned_joined AND NOT awaited.coming AS settled,
       n.joined, awaited.coming, t.mine, t.others
FROM (SELECT * FROM {cluster} WHERE {sound}) c
LEFT JOIN {node} n ON n.name = %(name)s AND n.incarnation = %(incarnation)s
CROSS JOIN LATERAL (
    SELECT EXISTS (SELECT FROM {token} WHERE next_node = %(name)s) AS coming
) awaited
CROSS JOIN LATERAL (
    WITH changed AS MATERIALIZED (
        SELECT token_id, incarnation, epoch, version, next_node FROM {token}
        WHERE version > 0 AND version > %(since)s AND version < 9223372036854775807
          AND (%(since)s >= 0 OR incarnation = %(incarnation)s)
        UNION ALL
        SELECT token_id, incarnation, epoch, version, next_node FROM {token}
        WHERE version = 0 AND %(since)s < c.tokens_since
          AND (%(since)s >= 0 OR incarnation = %(incarnation)s)
    )
    SELECT (SELECT json_agg(json_build_array(epoch, version, revoking, token_ids)) FROM (
                SELECT epoch, version, next_node IS NOT NULL AS revoking,
                       array_agg(token_id) AS token_ids
                FROM changed WHERE incarnation = %(incarnation)s
                GROUP BY epoch, version, next_node IS NOT NULL
            ) alike) AS mine,
           (SELECT array_agg(token_id) FROM changed
            WHERE incarnation IS DISTINCT FROM %(incarnation)s) AS others
) t
CROSS JOIN LATERAL (
    SELECT count(*) AS crowd, count(*) FILTER (WHERE boot_id = n.boot_id) AS members,
           coalesce(max(joined) FILTER (WHERE boot_id = n.boot_id), 0) AS youngest
    FROM {node}
) host

-- name: acknowledge
-- The owner lets go: each token passes to its receiver, or to nobody when that is gone or draining.
-- It answers one very revocation, named by its version. Nodes change only under the cluster row's
-- lock, which this transaction holds: it comes in one message with lock_cluster, and where that
-- found no sound row, neither does this. Nothing is written if nothing is let go. Thousands of
-- tokens may be on their way: `|| ''` keeps the planner from looking among those. An announcement
-- wakes everybody, so only the last of those who hand something to a receiver makes one, which
-- names it; but everybody is told of a token that has no owner, for the leader has to look.
WITH handed_on AS (
    UPDATE {token} t
    SET (node, incarnation) = (
            SELECT name, n.incarnation FROM {node} n
            WHERE name = t.next_node AND state = 'active'),
        epoch = t.epoch + 1, next_node = NULL, version = c.version + 1, assigned_at = now(),
        revoked_at = NULL
    FROM (SELECT version FROM {cluster} WHERE {sound}) c
    WHERE t.ctid = ANY(ARRAY(
        SELECT ctid FROM {token} t
        WHERE token_id = ANY(%(token_ids)s::integer[])
          AND version = (%(versions)s::bigint[])[{place}]
          AND incarnation = %(incarnation)s AND next_node || '' IS NOT NULL
        FOR UPDATE SKIP LOCKED))
    RETURNING t.token_id, t.node
), complete AS (
    SELECT (SELECT joined FROM {node} n WHERE n.name = received.node) AS joined
    FROM (SELECT node, count(*) AS tokens FROM handed_on GROUP BY node) received
    WHERE node IS NOT NULL AND tokens = (
        SELECT count(*)
        FROM (SELECT FROM {token} WHERE next_node = received.node LIMIT tokens + 1) before)
), told AS (
    SELECT CASE WHEN EXISTS (SELECT FROM handed_on WHERE node IS NULL)
                     OR count(*) > %(most_named)s THEN ''
                ELSE string_agg(' ' || joined, '' ORDER BY joined) END AS names
    FROM complete
), taken AS (
    UPDATE {cluster}
    SET version = version + 1,
        announced = CASE WHEN told.names IS NOT NULL AND {announces} THEN version + 1
                         ELSE announced END
    FROM told WHERE EXISTS (SELECT FROM handed_on) AND {sound}
    RETURNING version, names
)
SELECT (SELECT array_agg(token_id) FROM handed_on) AS token_ids, version,
       CASE WHEN names IS NOT NULL AND {announces}
            THEN pg_notify(%(channel)s, version || names) END AS pg_notify
FROM taken

-- name: show_stuck
-- For people: revoked tokens that somebody at this worker does not let go of.
UPDATE {node} SET stuck = %(stuck)s::jsonb WHERE name = %(name)s AND incarnation = %(incarnation)s

-- name: announce_runs
-- What this worker runs, in its own row. No row: it is not there now.
UPDATE {node} SET runs = %(runs)s::jsonb WHERE name = %(name)s AND incarnation = %(incarnation)s

-- name: read_idlers
-- Workers that say what they run, and do not run all that this one does.
SELECT name, incarnation, runs FROM {node}
WHERE incarnation <> %(incarnation)s AND said_by = incarnation AND NOT runs @> %(runs)s::jsonb
ORDER BY joined

-- name: tokens_of
-- The tokens of some workers, each with its owner.
SELECT incarnation, array_agg(token_id) AS token_ids
FROM {token} WHERE incarnation = ANY(%(incarnations)s) GROUP BY incarnation

-- name: owner_of
SELECT n.name, n.address, t.epoch
FROM {token} t JOIN {node} n USING (incarnation) WHERE t.token_id = %(token_id)s

-- == leading ======================================================================================

-- name: lock_as_leader
-- First statement of every transaction of the leader: the cluster's row lock, and proof that its
-- term still stands. What comes back is the row as it is under the lock, whatever it was when the
-- statement began to wait.
SELECT version, term, leader_incarnation, generation, pin_version, planned_joined FROM {cluster}
WHERE term = %(term)s AND leader_incarnation = %(incarnation)s
  AND EXISTS (SELECT FROM {node} WHERE incarnation = %(incarnation)s) AND {sound} FOR UPDATE

-- name: one_snapshot
-- All reads of this transaction see the same moment.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: read_cluster
SELECT version, term, leader_incarnation, generation, pin_version, planned_joined
FROM {cluster} WHERE {sound}

-- name: read_members
SELECT n.name, n.incarnation, n.beat, n.weight, n.state = 'active' AS active, n.joined,
       {timeout} AS timeout_sec, {interval} AS interval_sec
FROM {node} n CROSS JOIN {cluster} c ORDER BY n.joined

-- name: read_token_groups
-- Tokens changed since, in groups that are alike to the leader.
SELECT node, incarnation, next_node, json_agg(token_id ORDER BY token_id) AS token_ids
FROM (
    SELECT node, incarnation, next_node, token_id FROM {token} WHERE version > %(since)s
    UNION ALL
    SELECT node, incarnation, next_node, token_id FROM {token}
    WHERE version = 0 AND %(since)s >= 0 AND %(since)s < (SELECT tokens_since FROM {cluster})
) changed
GROUP BY node, incarnation, next_node

-- name: read_pins
-- Pins in force, and in how many seconds each expires.
SELECT task_id, node_patterns,
       extract(epoch FROM expires_at - now())::double precision AS expires_in
FROM {lock} WHERE expires_at IS NULL OR expires_at > now() ORDER BY created_at, task_id

-- name: read_events
-- What has happened since the last plan was written, the oldest first: only such kinds as may be
-- the cause of the next one, and, where nothing is planned for long, the latest of it.
SELECT id, kind, node, incarnation FROM (
    SELECT id, kind, node, incarnation FROM {history}
    WHERE version > coalesce((
              SELECT r.version FROM {rebalance} r
              WHERE r.version <= (SELECT version FROM {cluster})
              ORDER BY r.version DESC LIMIT 1
          ), 0)
      AND kind = ANY(%(kinds)s)
    ORDER BY version DESC, id DESC LIMIT 1000
) latest
ORDER BY id

-- name: expire_nodes
-- Deletes a worker only if its beat is still the one that was watched: the row lock makes a
-- heartbeat under way either come first, and then nothing is deleted, or find no row.
WITH gone AS (
    DELETE FROM {node} n
    USING unnest(%(names)s::text[], %(incarnations)s::uuid[], %(beats)s::bigint[])
          AS w(name, incarnation, beat)
    WHERE n.name = w.name AND n.incarnation = w.incarnation AND n.beat = w.beat
    RETURNING n.name, n.incarnation, 'expired' AS kind, NULL AS reason, {silence} AS silent_sec
), told AS (
    {tell_gone}
)
SELECT name, incarnation FROM gone

-- name: take_over
-- A new leader, if the old one is gone from the table and nobody else took over in between.
WITH led AS (
    UPDATE {cluster} c
    SET leader = %(name)s, leader_incarnation = %(incarnation)s, term = c.term + 1
    FROM {cluster} b
    WHERE c.term = %(term)s
      AND NOT EXISTS (SELECT FROM {node} WHERE incarnation = c.leader_incarnation)
      AND EXISTS (SELECT FROM {node} WHERE incarnation = %(incarnation)s)
    RETURNING c.version, c.term, c.leader, c.leader_incarnation,
              b.leader AS before, b.leader_incarnation AS incarnation_before
)
{tell_who_leads}

-- name: copy_tokens
-- New rows, as PostgreSQL loads many of them fastest. Only under the cluster row's lock are there
-- new ones, and so neither these rows nor other workers can have come since the leader's reading.
-- The first rows are made under version 0, which no index holds: the cluster's tokens_since says
-- from when on they have been.
COPY {token} (token_id, node, incarnation, epoch, version) FROM STDIN (FORMAT binary)

-- name: assign_tokens
-- Tokens that no live worker owns go to their receivers at once, and so do those of this leader
-- that it has let go of. Rows that a fence locks, and rows changed since the plan's reading, are
-- passed over. A row that a fence locked while a generation was begun still has an epoch of the one
-- before. Rows are locked by their numbers and then written where they were found, for none changes
-- without the cluster row's lock. So the cost is that of the tokens that move. LATERAL says the
-- same elsewhere: left to itself, the planner reads the whole table, or compares each free token
-- with each that is asked for.
UPDATE {token} t
SET node = receivers.names[{receiver}], incarnation = receivers.incarnations[{receiver}],
    epoch = greatest(t.epoch, %(generation)s::bigint << 32) + 1,
    next_node = NULL, version = %(version)s, assigned_at = now(), revoked_at = NULL
FROM (
    SELECT array_agg(n.name ORDER BY w.number) AS names,
           array_agg(n.incarnation ORDER BY w.number) AS incarnations
    FROM unnest(%(names)s::text[]) WITH ORDINALITY AS w(name, number)
    LEFT JOIN LATERAL (
        SELECT name, incarnation FROM {node} WHERE name = w.name AND state = 'active' LIMIT 1
    ) n ON true
) receivers
WHERE t.ctid = ANY(ARRAY(
    SELECT ctid FROM {token} t
    WHERE token_id = ANY(%(token_ids)s::integer[]) AND version <= %(planned_version)s
      AND (incarnation = %(incarnation)s
           OR NOT EXISTS (SELECT FROM {node} n WHERE n.incarnation = t.incarnation))
    FOR UPDATE OF t SKIP LOCKED))

-- name: revoke_tokens
-- Tokens of live workers: says who is to have them next ('' for nobody), or, with null, that they
-- stay after all. The owner stays the owner, so a fence is not in the way: a token that is fenced
-- at every moment would never be free of one.
UPDATE {token} t
SET next_node = (%(names)s::text[])[{receiver}], version = %(version)s,
    revoked_at = CASE WHEN (%(names)s::text[])[{receiver}] IS NOT NULL
                      THEN coalesce(revoked_at, now()) END
WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM {token}
    WHERE token_id = ANY(%(token_ids)s::integer[]) AND version <= %(planned_version)s
      AND incarnation IS NOT NULL
    FOR NO KEY UPDATE SKIP LOCKED))

-- name: finish_plan
-- The new version, whether the first tokens were made under it, and up to which worker the plan
-- counts. The next two come in one message with it.
UPDATE {cluster}
SET version = %(version)s, announced = CASE WHEN {announces} THEN %(version)s ELSE announced END,
    planned_joined = %(planned_joined)s,
    tokens_since = CASE WHEN %(first)s THEN %(version)s ELSE tokens_since END

-- name: record_plan
-- For people, if there is a plan. A row that is there already, of a cluster that was before on
-- these tables, stops nothing.
INSERT INTO {rebalance} (version, reason, leader, term, nodes_before, nodes_after, tokens_moved,
                         duration_ms, causes, moves)
VALUES (%(version)s, %(reason)s, %(leader)s, %(term)s, %(nodes_before)s, %(nodes_after)s,
        %(tokens_moved)s, %(duration_ms)s, %(causes)s::bigint[], %(moves)s::jsonb)
ON CONFLICT DO NOTHING

-- name: long_ago
-- Part of others: what was before that is old. The beginning of a date of the cluster, if one is
-- given, or so many days ago.
coalesce((SELECT %(before)s::date::timestamp AT TIME ZONE coalesce(time_zone, 'UTC')
          FROM {cluster}),
         now() - %(days)s::double precision * interval '1 day')

-- name: forget_events
-- Some of what the history tells of long ago. The last change of the leader stays: it says since
-- when who leads.
DELETE FROM {history} WHERE id = ANY(ARRAY(
    SELECT id FROM {history}
    WHERE at < {long_ago} AND id IS DISTINCT FROM (
        SELECT id FROM {history} WHERE term IS NOT NULL ORDER BY term DESC LIMIT 1)
    ORDER BY at LIMIT %(most)s))

-- name: forget_rebalances
-- Some of the old distributions. The last one stays: the next one is compared with it.
DELETE FROM {rebalance} WHERE version = ANY(ARRAY(
    SELECT version FROM (
        SELECT version, at FROM {rebalance} ORDER BY version LIMIT %(most)s
    ) oldest
    WHERE at < {long_ago} AND version < (SELECT max(version) FROM {rebalance})))

-- name: announce_plan
-- To all that listen, when this is committed, with whom it concerns.
SELECT CASE WHEN {announces}
            THEN pg_notify(%(channel)s, %(version)s::text || %(concerned)s) END AS pg_notify

-- == known deaths =================================================================================

-- name: end_sessions
-- Sessions of dead workers, known by their tags: ends them, and says how many there still were.
-- Whoever acts as another role than it has logged in as may not be allowed to: then they are left
-- to the server.
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND usename = session_user AND pg_has_role(usesysid, 'USAGE')
  AND pid <> pg_backend_pid()
  AND EXISTS (
      SELECT FROM unnest(%(tags)s::text[]) AS tag
      WHERE length(tag) > 8 AND strpos(application_name, tag) > 0)

-- name: delete_dead
-- Workers whose processes were seen dead: each only as the very start, in the very process, that
-- was seen.
WITH gone AS (
    DELETE FROM {node} n
    USING unnest(%(names)s::text[], %(incarnations)s::uuid[], %(boot_ids)s::text[],
                 %(namespaces)s::text[], %(pids)s::integer[], %(started)s::bigint[])
          AS d(name, incarnation, boot_id, pid_namespace, pid, process_started)
    WHERE n.name = d.name AND n.incarnation = d.incarnation AND n.boot_id = d.boot_id
      AND n.pid_namespace = d.pid_namespace AND n.pid = d.pid
      AND n.process_started = d.process_started
    RETURNING n.name, n.incarnation, 'died' AS kind, 'its process has ended' AS reason,
              {silence} AS silent_sec
), told AS (
    {tell_gone}
)
SELECT name FROM gone

-- == sessions =====================================================================================

-- name: hold_session
-- Failover by session: a lock that lives as long as the session that carries the heartbeats.
-- Shared, so that a session that is half gone, with the lock still held, is not in the way of the
-- next; and never waited for, whoever else may hold it.
SELECT pg_try_advisory_lock_shared(hashtextextended(%(key)s || %(incarnation)s::uuid::text, 0))

-- name: read_sessions
-- Who holds its lock, and on what that is based: this very start of the server, and this very
-- session of the watcher.
WITH held AS MATERIALIZED (
    SELECT classid::bigint << 32 | objid::bigint AS key FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT pg_postmaster_start_time() AS server_started, a.pid, a.backend_start,
       n.name, n.incarnation, n.beat, n.session_tag,
       EXISTS (
           SELECT FROM held WHERE key = hashtextextended(%(key)s || n.incarnation::text, 0)
       ) AS held
FROM pg_stat_activity a LEFT JOIN {node} n ON true WHERE a.pid = pg_backend_pid()

-- name: expire_sessionless
-- Deletes a worker whose lock was seen gone, if it still is, its beat is the one that was seen, and
-- neither server nor session has changed.
WITH gone AS (
    DELETE FROM {node} n
    USING unnest(%(names)s::text[], %(incarnations)s::uuid[], %(beats)s::bigint[])
          AS w(name, incarnation, beat)
    WHERE n.name = w.name AND n.incarnation = w.incarnation AND n.beat = w.beat
      AND NOT EXISTS (
          SELECT FROM pg_locks
          WHERE locktype = 'advisory' AND objsubid = 1 AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND classid::bigint << 32 | objid::bigint
                = hashtextextended(%(key)s || n.incarnation::text, 0))
      AND pg_postmaster_start_time() = %(server_started)s
      AND EXISTS (
          SELECT FROM pg_stat_activity
          WHERE pid = pg_backend_pid() AND pid = %(pid)s AND backend_start = %(backend_start)s)
    RETURNING n.name, n.incarnation, 'died' AS kind, 'its session has ended' AS reason,
              {silence} AS silent_sec
), told AS (
    {tell_gone}
)
SELECT name FROM gone

-- == pins =========================================================================================

-- name: touch_pins
-- Second statement of a transaction that changes pins: makes the leader read them again.
UPDATE {cluster} SET pin_version = version

-- name: pins_of_tokens
-- Pins in force that share a token with those that are asked for.
SELECT task_id, token_id, node_patterns FROM {lock}
WHERE token_id = ANY(%(token_ids)s) AND (expires_at IS NULL OR expires_at > now())
ORDER BY created_at, task_id

-- name: upsert_pins
INSERT INTO {lock} (task_key, task_id, token_id, node_patterns, reason, created_by, expires_at)
SELECT p.task_key, p.task_id, p.token_id, p.node_patterns::jsonb, p.reason, %(created_by)s,
       now() + %(expires_in_days)s::double precision * interval '1 day'
FROM unnest(%(task_keys)s::bytea[], %(task_ids)s::text[], %(token_ids)s::integer[],
            %(node_patterns)s::text[], %(reasons)s::text[])
     AS p(task_key, task_id, token_id, node_patterns, reason)
ON CONFLICT (task_key) DO UPDATE
SET token_id = excluded.token_id, node_patterns = excluded.node_patterns, reason = excluded.reason,
    created_by = excluded.created_by, created_at = now(), expires_at = excluded.expires_at

-- name: delete_pins_by_creator
DELETE FROM {lock} WHERE created_by = %(created_by)s

-- name: delete_all_pins
DELETE FROM {lock}

-- name: delete_expired_pins
DELETE FROM {lock} WHERE expires_at <= now()

-- name: list_pins
SELECT task_id, token_id, node_patterns, reason, created_at, created_by, expires_at
FROM {lock} WHERE expires_at IS NULL OR expires_at > now() ORDER BY created_at, task_id

-- == pauses =======================================================================================

-- name: read_pause
-- Since when, by whom and why nothing new is started; no row: it is.
SELECT pause_reason AS reason, paused_by AS by, paused_at AS since
FROM {cluster} WHERE paused_at IS NOT NULL

-- name: pause
-- After take_version, whose lock it needs. Whoever hears the word reads at once, as if the change
-- were announced with his name: there are too many to name.
WITH paused AS (
    UPDATE {cluster} SET paused_at = now(), paused_by = %(by)s, pause_reason = %(reason)s
    RETURNING 1
)
SELECT CASE WHEN {announces} THEN pg_notify(%(channel)s, 'now') END AS pg_notify FROM paused

-- name: resume
-- The same: everything may be started again.
WITH resumed AS (
    UPDATE {cluster} SET paused_at = NULL, paused_by = NULL, pause_reason = NULL RETURNING 1
)
SELECT CASE WHEN {announces} THEN pg_notify(%(channel)s, 'now') END AS pg_notify FROM resumed

-- == claims and audit =============================================================================

-- A fence locks the token's row FOR KEY SHARE, which every change of owner waits for or passes
-- over, for it locks FOR UPDATE.

-- name: record_claims
-- Begins tasks, each only while its token is this incarnation's under this epoch. Comes back: every
-- task whose fence held, and whether it is complete for the date already (then it is not begun
-- again). What an earlier owner completed is seen here: it was committed before the token could
-- move. The row locks hold up a change of owner until the commit. The locks, the check and what is
-- written are one statement, so that it needs no transaction around it: with all_or_none it writes
-- nothing by itself when a fence did not hold.
WITH fenced AS (
    SELECT w.task_key, w.task_id, w.token_id, w.epoch, a.complete IS NOT NULL AS complete
    FROM unnest(%(task_keys)s::bytea[], %(task_ids)s::text[], %(token_ids)s::integer[],
                %(epochs)s::bigint[]) AS w(task_key, task_id, token_id, epoch)
    CROSS JOIN LATERAL (
        SELECT FROM {token} t
        WHERE t.token_id = w.token_id AND t.incarnation = %(incarnation)s AND t.epoch = w.epoch
        FOR KEY SHARE
    ) t
    LEFT JOIN LATERAL (
        SELECT true AS complete FROM {audit}
        WHERE date = %(date)s AND task_key = w.task_key LIMIT 1
    ) a ON true
), begun AS (
    INSERT INTO {claim} AS c (date, task_key, task_id, token_id, node, epoch)
    SELECT %(date)s, task_key, task_id, token_id, %(node)s, epoch FROM fenced
    WHERE NOT complete
      AND (NOT %(all_or_none)s
           OR (SELECT count(*) FROM fenced) = cardinality(%(task_keys)s::bytea[]))
    ON CONFLICT (date, task_key) DO UPDATE
    SET node = excluded.node, epoch = excluded.epoch, claimed_at = now(), error = NULL
)
SELECT task_key, complete FROM fenced

-- name: record_claim
-- The same for a single task, which takes PostgreSQL much less to plan; no row comes back when the
-- fence did not hold.
WITH fenced AS (
    SELECT token_id, epoch FROM {token}
    WHERE token_id = %(token_id)s AND incarnation = %(incarnation)s AND epoch = %(epoch)s
    FOR KEY SHARE
), done AS MATERIALIZED (
    SELECT FROM {audit} WHERE date = %(date)s AND task_key = %(task_key)s
), begun AS (
    INSERT INTO {claim} AS c (date, task_key, task_id, token_id, node, epoch)
    SELECT %(date)s, %(task_key)s, %(task_id)s, token_id, %(node)s, epoch FROM fenced
    WHERE NOT EXISTS (SELECT FROM done)
    ON CONFLICT (date, task_key) DO UPDATE
    SET node = excluded.node, epoch = excluded.epoch, claimed_at = now(), error = NULL
)
SELECT EXISTS (SELECT FROM done) AS complete FROM fenced

-- name: begin_tasks
-- The same for tasks of a batch, which must not end one worker after the other. An incarnation that
-- ended while it was at work on a task left its claim open: whoever finds that counts it. With so
-- many lost owners as the limit says, the task is set aside. One with more than `most_lost` is not
-- begun now, and nothing is written: what was begun ahead, or beside others, would make innocent
-- ones look guilty. Comes back: the tasks that are not simply begun, and whether their fence held.
WITH fenced AS (
    SELECT %(date)s::date AS date, w.task_key, w.task_id, w.token_id, w.epoch,
           a.complete IS NOT NULL AS complete, s.reason,
           coalesce(c.owners_lost, 0)
               + CASE WHEN c.open AND c.incarnation <> %(incarnation)s THEN 1 ELSE 0 END AS lost
    FROM unnest(%(task_keys)s::bytea[], %(task_ids)s::text[], %(token_ids)s::integer[],
                %(epochs)s::bigint[]) AS w(task_key, task_id, token_id, epoch)
    CROSS JOIN LATERAL (
        SELECT FROM {token} t
        WHERE t.token_id = w.token_id AND t.incarnation = %(incarnation)s AND t.epoch = w.epoch
        FOR KEY SHARE
    ) t
    LEFT JOIN LATERAL (
        SELECT true AS complete FROM {audit}
        WHERE date = %(date)s AND task_key = w.task_key LIMIT 1
    ) a ON true
    LEFT JOIN LATERAL (
        SELECT owners_lost, open, incarnation FROM {claim}
        WHERE date = %(date)s AND task_key = w.task_key LIMIT 1
    ) c ON true
    LEFT JOIN LATERAL (
        SELECT reason FROM {set_aside} WHERE task_key = w.task_key LIMIT 1
    ) s ON true
), judged AS (
    SELECT date, task_key, task_id, token_id, epoch, complete, lost,
           reason IS NULL AND lost >= %(lost_limit)s AND NOT complete AS guilty,
           reason IS NULL AND lost <= %(most_lost)s AND NOT complete AS begun,
           coalesce(reason, replace(%(reason)s, '#', lost::text)) AS reason,
           reason IS NOT NULL OR lost >= %(lost_limit)s AS aside
    FROM fenced
), written AS (
    INSERT INTO {claim} AS c (date, task_key, task_id, token_id, node, epoch, batch, incarnation,
                              open, owners_lost)
    SELECT %(date)s, task_key, task_id, token_id, %(node)s, epoch, %(batch)s::text,
           %(incarnation)s, true, lost
    FROM judged WHERE begun
    ON CONFLICT (date, task_key) DO UPDATE
    SET node = excluded.node, epoch = excluded.epoch, claimed_at = now(), error = NULL,
        batch = excluded.batch,
        incarnation = excluded.incarnation, open = true, owners_lost = excluded.owners_lost
), closed AS (
    UPDATE {claim} c SET open = false, owners_lost = j.lost, error = j.reason, set_aside_at = now()
    FROM judged j WHERE j.guilty AND c.date = j.date AND c.task_key = j.task_key
), put_aside AS (
    INSERT INTO {set_aside} (task_key, task_id, batch, date, owners_lost, reason)
    SELECT task_key, task_id, %(batch)s::text, %(date)s, lost, reason FROM judged WHERE guilty
    ON CONFLICT (task_key) DO NOTHING
), counted AS (
    INSERT INTO {batch_part} AS p (batch_key, date, incarnation, node, otherwise)
    SELECT %(batch_key)s, %(date)s, %(incarnation)s, %(node)s, count(*) FROM judged
    WHERE complete OR aside
    HAVING count(*) > 0
    ON CONFLICT (batch_key, date, incarnation)
    DO UPDATE SET otherwise = p.otherwise + excluded.otherwise
)
SELECT asked.task_key, j.task_key IS NOT NULL AS held, j.complete, j.begun,
       CASE WHEN j.aside AND NOT j.complete THEN j.reason END AS set_aside, j.lost
FROM unnest(%(task_keys)s::bytea[]) AS asked(task_key) LEFT JOIN judged j USING (task_key)
WHERE j.begun IS NOT TRUE OR j.lost > 0

-- name: record_completions
-- Completes tasks of a batch, each once per date and only while its token is this incarnation's
-- under this epoch, and counts them. Comes back: the tasks that this statement did not complete, and
-- whether their fence held.
WITH fenced AS (
    SELECT w.task_key, w.task_id, w.token_id, w.epoch
    FROM unnest(%(task_keys)s::bytea[], %(task_ids)s::text[], %(token_ids)s::integer[],
                %(epochs)s::bigint[]) AS w(task_key, task_id, token_id, epoch)
    CROSS JOIN LATERAL (
        SELECT FROM {token} t
        WHERE t.token_id = w.token_id AND t.incarnation = %(incarnation)s AND t.epoch = w.epoch
        FOR KEY SHARE
    ) t
), written AS (
    INSERT INTO {audit} (date, task_key, task_id, token_id, node, epoch, batch)
    SELECT %(date)s, task_key, task_id, token_id, %(node)s, epoch, %(batch)s::text FROM fenced
    ON CONFLICT (date, task_key) DO NOTHING
    RETURNING task_key
), counted AS (
    INSERT INTO {batch_part} AS p (batch_key, date, incarnation, node, completed)
    SELECT %(batch_key)s, %(date)s, %(incarnation)s, %(node)s, count(*) FROM written
    HAVING count(*) > 0
    ON CONFLICT (batch_key, date, incarnation)
    DO UPDATE SET completed = p.completed + excluded.completed
)
SELECT asked.task_key, f.task_key IS NOT NULL AS held
FROM unnest(%(task_keys)s::bytea[]) AS asked(task_key)
LEFT JOIN written w USING (task_key) LEFT JOIN fenced f USING (task_key)
WHERE w.task_key IS NULL

-- name: write_audit
-- What a worker did is written down as it happened, also when the token has moved on since; the
-- first record stays.
INSERT INTO {audit} (date, task_key, task_id, token_id, node, epoch)
SELECT %(date)s, w.task_key, w.task_id, w.token_id, %(node)s, w.epoch
FROM unnest(%(task_keys)s::bytea[], %(task_ids)s::text[], %(token_ids)s::integer[],
            %(epochs)s::bigint[]) AS w(task_key, task_id, token_id, epoch)
ON CONFLICT (date, task_key) DO NOTHING

-- name: read_audit
SELECT date, task_id, token_id, node, epoch, completed_at, batch FROM {audit}
WHERE date = %(date)s ORDER BY completed_at, task_id, batch

-- name: end_claims
-- Tasks that were begun and have ended in order without being completed: given up with an error,
-- which is counted, or let go of with none. How many there were. The date comes with each task
-- (OFFSET 0), so that each is looked up by both: a date alone would bring a whole day.
WITH ended AS (
    UPDATE {claim} c
    SET error = w.error, open = false, last_error = coalesce(w.error, c.last_error),
        failures = c.failures + CASE WHEN w.error IS NULL THEN 0 ELSE 1 END
    FROM (
        SELECT %(date)s::date AS date, w.*
        FROM unnest(%(task_keys)s::bytea[], %(errors)s::text[], %(epochs)s::bigint[])
             AS w(task_key, error, epoch)
        OFFSET 0
    ) w
    WHERE c.date = w.date AND c.task_key = w.task_key AND c.epoch = w.epoch
    RETURNING w.error
), counted AS (
    INSERT INTO {batch_part} AS p (batch_key, date, incarnation, node, otherwise)
    SELECT %(batch_key)s, %(date)s, %(incarnation)s, %(node)s, count(error) FROM ended
    HAVING count(error) > 0
    ON CONFLICT (batch_key, date, incarnation)
    DO UPDATE SET otherwise = p.otherwise + excluded.otherwise
)
SELECT count(*) AS ended FROM ended

-- name: note_failure
-- The handler of a task that was begun has failed, and is called again.
UPDATE {claim} SET failures = failures + 1, last_error = %(error)s
WHERE date = %(date)s AND task_key = %(task_key)s AND epoch = %(epoch)s

-- name: forget_failures
-- A batch is run again: what was given up is tried anew.
WITH forgotten AS (
    UPDATE {claim} c SET error = NULL
    FROM (
        SELECT %(date)s::date AS date, w.task_key
        FROM unnest(%(task_keys)s::bytea[]) AS w(task_key)
        OFFSET 0
    ) w
    WHERE c.date = w.date AND c.task_key = w.task_key AND c.error IS NOT NULL
    RETURNING 1
)
INSERT INTO {batch_part} AS p (batch_key, date, incarnation, node, otherwise)
SELECT %(batch_key)s, %(date)s, %(incarnation)s, %(node)s, -count(*) FROM forgotten
HAVING count(*) > 0
ON CONFLICT (batch_key, date, incarnation)
DO UPDATE SET otherwise = p.otherwise + excluded.otherwise

-- name: read_progress
-- Of the given tasks, those that are completed, and those that were given up, with the error and
-- when they were begun.
SELECT w.task_key, coalesce(a.node, c.node) AS node, c.error, c.claimed_at
FROM unnest(%(task_keys)s::bytea[]) AS w(task_key)
LEFT JOIN LATERAL (
    SELECT node FROM {audit} WHERE date = %(date)s AND task_key = w.task_key LIMIT 1
) a ON true
LEFT JOIN LATERAL (
    SELECT node, error, claimed_at FROM {claim}
    WHERE a.node IS NULL AND date = %(date)s AND task_key = w.task_key AND error IS NOT NULL LIMIT 1
) c ON true
WHERE a.node IS NOT NULL OR c.node IS NOT NULL

-- name: read_set_aside
-- Of the given tasks, those that are set aside, and not complete on this date; who had them last.
SELECT s.task_key, coalesce(c.node, '') AS node, s.reason AS error, s.set_aside_at AS claimed_at
FROM {set_aside} s
LEFT JOIN LATERAL (
    SELECT node FROM {claim} WHERE date = s.date AND task_key = s.task_key LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT true AS complete FROM {audit} WHERE date = %(date)s AND task_key = s.task_key LIMIT 1
) a ON true
WHERE s.task_key = ANY(%(task_keys)s::bytea[]) AND a.complete IS NULL

-- == batches and dates ============================================================================

-- name: read_date
-- The cluster's date: what the server's clock says in the cluster's time zone.
SELECT (now() AT TIME ZONE coalesce(time_zone, 'UTC'))::date AS date FROM {cluster}

-- name: lock_batch
-- Beginning a batch, first of two statements in one message: one at a time, so that the second sees
-- what others have begun.
SELECT pg_advisory_xact_lock(hashtextextended(%(lock)s, 0))

-- name: find_complete
-- The run that begin_batch would open anew, if it ended with all its ids completed, and the rows
-- are still there: their number, and the sum of the ends of their keys, which tells whose they are.
-- So nobody looks at single ids. Only for such a run are its rows read, once (of a batch without a
-- name, those of its date): it is found first (MATERIALIZED), whatever the planner expects of it.
WITH fresh AS (
    SELECT coalesce(%(date)s::date, %(default_date)s::date,
                    (now() AT TIME ZONE coalesce(time_zone, 'UTC'))::date) AS date FROM {cluster}
), ended AS MATERIALIZED (
    SELECT b.date FROM fresh JOIN {batch} b ON b.date = fresh.date AND b.batch_key = %(batch_key)s
    WHERE b.finished_at IS NOT NULL AND b.ids_key = %(ids_key)s AND NOT b.mixed
      AND (%(date)s::date IS NOT NULL
           OR NOT EXISTS (SELECT FROM {batch} o
                          WHERE o.batch_key = %(batch_key)s AND o.finished_at IS NULL))
      AND %(total)s::bigint <= (SELECT sum(completed) FROM {batch_part} p
                                WHERE p.batch_key = %(batch_key)s AND p.date = b.date)
)
SELECT ended.date, a.tasks, coalesce(a.ends, 0)::bigint AS ends
FROM ended CROSS JOIN LATERAL (
    SELECT count(*) AS tasks,
           sum(get_byte(task_key, 28) * 16777216::bigint + get_byte(task_key, 29) * 65536
               + get_byte(task_key, 30) * 256 + get_byte(task_key, 31)) AS ends
    FROM {audit} a
    WHERE a.date = ended.date AND a.task_key > %(low)s AND a.task_key < %(high)s
      AND a.batch IS NOT DISTINCT FROM %(name)s::text
) a

-- name: begin_batch
-- Under which date a batch runs: the one that is asked for; or that of its latest open run; or the
-- default, or the cluster's. That run is open from now on. A run that was finished is opened anew.
-- Comes back, too: whether nothing of it was complete when it was begun, as is certain of a batch
-- with a name that is run for the first time on a date, or with nothing complete on that date; and
-- nothing was given up or set aside by now. Once
-- a run was begun over two sets of ids, it is mixed. A stream of ids has no total yet, and its key
-- is that of no ids: it goes on where it was. Opened anew, it begins at the first of them, and is
-- mixed: who was further may be at work there.
WITH fresh AS (
    SELECT coalesce(%(default_date)s::date,
                    (now() AT TIME ZONE coalesce(time_zone, 'UTC'))::date) AS date FROM {cluster}
), chosen AS (
    SELECT coalesce(%(date)s::date, (
               SELECT max(date) FROM {batch}
               WHERE batch_key = %(batch_key)s AND finished_at IS NULL
           ), date) AS date
    FROM fresh
), begun AS (
    INSERT INTO {batch} AS b (batch_key, date, name, total, started_by, ids_key, clean)
    SELECT %(batch_key)s, date, %(name)s, %(total)s::bigint, %(node)s, %(ids_key)s,
           %(name)s::text IS NOT NULL
               OR (SELECT false FROM {audit} a WHERE a.date = chosen.date LIMIT 1) IS NULL
    FROM chosen
    ON CONFLICT (batch_key, date) DO UPDATE
    SET finished_at = NULL,
        total = CASE WHEN excluded.total IS NULL AND b.finished_at IS NULL
                     THEN b.total ELSE excluded.total END,
        ids_key = CASE WHEN excluded.total IS NULL AND b.finished_at IS NULL
                       THEN b.ids_key ELSE excluded.ids_key END,
        mixed = b.mixed OR CASE WHEN excluded.total IS NULL THEN b.finished_at IS NOT NULL
                                ELSE b.ids_key <> excluded.ids_key END,
        clean = coalesce(b.clean, false) AND b.finished_at IS NULL,
        started_at = CASE WHEN b.finished_at IS NULL THEN b.started_at ELSE excluded.started_at END,
        started_by = CASE WHEN b.finished_at IS NULL THEN b.started_by ELSE excluded.started_by END,
        completed_before = CASE WHEN b.finished_at IS NULL THEN b.completed_before ELSE (
            SELECT coalesce(sum(completed), 0) FROM {batch_part} p
            WHERE p.batch_key = b.batch_key AND p.date = b.date) END
    RETURNING date, started_at, started_by, clean
)
SELECT begun.date, begun.started_at, begun.started_by,
       coalesce(%(date)s::date, fresh.date) AS fresh,
       clock_timestamp() AS at,
       begun.clean AND NOT EXISTS (
           SELECT FROM {batch_part} p
           WHERE p.batch_key = %(batch_key)s AND p.date = begun.date AND p.otherwise <> 0) AS clean
FROM begun CROSS JOIN fresh

-- name: advance_batch
-- After lock_batch: a worker goes on to the next portion of a batch whose ids are a stream. The run
-- goes with it from the portion before, and those who wait there hear of it; or it is there already.
-- Otherwise the run stays elsewhere, unless it has to come `anyhow`: then it is mixed.
WITH placed AS (
    INSERT INTO {batch_part} AS p (batch_key, date, incarnation, node, ids_key, taken)
    VALUES (%(batch_key)s, %(date)s, %(incarnation)s, %(node)s, %(ids_key)s, %(taken)s)
    ON CONFLICT (batch_key, date, incarnation)
    DO UPDATE SET ids_key = excluded.ids_key, taken = excluded.taken
), moved AS (
    UPDATE {batch} b
    SET total = %(taken)s, ids_key = %(ids_key)s, before_key = %(before_key)s, finished_at = NULL,
        mixed = b.mixed OR b.ids_key <> %(before_key)s
    WHERE batch_key = %(batch_key)s AND date = %(date)s AND ids_key <> %(ids_key)s
      AND (ids_key = %(before_key)s OR %(anyhow)s)
    RETURNING 1
)
SELECT EXISTS (SELECT FROM moved)
       OR EXISTS (SELECT FROM {batch} WHERE batch_key = %(batch_key)s AND date = %(date)s
                    AND ids_key = %(ids_key)s) AS there,
       CASE WHEN EXISTS (SELECT FROM moved) AND {announces}
            THEN pg_notify(%(channel)s, 'batch') END AS pg_notify

-- name: finish_batch
-- All its ids are done with: the very opening that was seen is over, and all who wait hear of it.
-- Whoever is at other ids of it has not seen that.
WITH finished AS (
    UPDATE {batch} SET finished_at = now(), mixed = mixed OR ids_key <> %(ids_key)s
    WHERE batch_key = %(batch_key)s AND date = %(date)s AND started_at = %(started_at)s
      AND finished_at IS NULL
    RETURNING 1
)
SELECT CASE WHEN {announces} THEN pg_notify(%(channel)s, 'batch') END AS pg_notify FROM finished

-- name: read_parts
-- How far a run is, as all workers count it together: cheap, however many ids it has. `finished` is
-- true once somebody saw that nothing is left of this very opening. `other_dates`: runs of others
-- dates; `other_ids`: whoever began it had other ids, which are counted here too; `uncounted`:
-- workers of a library that counts nothing; `moved_on`: it is at the next portion of a stream, so
-- that nothing is left of this one.
SELECT coalesce(p.completed, 0)::bigint AS completed,
       coalesce(p.otherwise, 0)::bigint AS otherwise,
       b.finished_at IS NOT NULL AND b.started_at = %(started_at)s AS finished,
       EXISTS (SELECT FROM {batch} o
               WHERE o.batch_key = %(batch_key)s AND o.finished_at IS NULL
                 AND o.date <> %(date)s) AS other_dates,
       coalesce(b.mixed OR b.ids_key <> %(ids_key)s
                AND b.before_key IS DISTINCT FROM %(ids_key)s, true) AS other_ids,
       EXISTS (SELECT FROM {node} n WHERE n.said_by IS DISTINCT FROM n.incarnation) AS uncounted,
       coalesce(b.ids_key <> %(ids_key)s AND b.before_key = %(ids_key)s, false) AS moved_on
FROM (VALUES (1)) AS always (one)
LEFT JOIN {batch} b ON b.batch_key = %(batch_key)s AND b.date = %(date)s
CROSS JOIN LATERAL (
    SELECT sum(completed) AS completed, sum(otherwise) AS otherwise FROM {batch_part}
    WHERE batch_key = %(batch_key)s AND date = %(date)s
) p

-- name: find_strays
-- Who owns some of the given tokens and runs this very run, but at another place of its stream,
-- and as far or further: with the same ids in the same order, that cannot be.
SELECT DISTINCT n.name AS node
FROM unnest(%(token_ids)s::integer[]) AS w(token_id)
CROSS JOIN LATERAL (SELECT incarnation FROM {token} WHERE token_id = w.token_id LIMIT 1) t
CROSS JOIN LATERAL (SELECT * FROM {node} WHERE incarnation = t.incarnation LIMIT 1) n
CROSS JOIN LATERAL (
    SELECT ids_key, taken FROM {batch_part}
    WHERE batch_key = %(batch_key)s AND date = %(date)s AND incarnation = n.incarnation LIMIT 1
) p
WHERE n.said_by = n.incarnation AND n.runs @> %(this_run)s::jsonb
  AND p.ids_key <> %(ids_key)s AND p.taken >= %(taken)s

-- name: find_dates
-- Who owns some of the given tasks and runs their batch under another date: as this very start it
-- has begun them there, or it says that it runs that. Only where that run is open; and nobody who
-- says that it runs this one, too.
WITH elsewhere AS (
    SELECT date FROM {batch}
    WHERE batch_key = %(batch_key)s AND finished_at IS NULL AND date <> %(date)s
), owner AS (
    SELECT w.task_key, n.name, n.incarnation,
           CASE WHEN n.said_by = n.incarnation THEN n.runs END AS runs
    FROM unnest(%(task_keys)s::bytea[], %(token_ids)s::integer[]) AS w(task_key, token_id)
    CROSS JOIN LATERAL (SELECT incarnation FROM {token} WHERE token_id = w.token_id LIMIT 1) t
    CROSS JOIN LATERAL (SELECT * FROM {node} WHERE incarnation = t.incarnation LIMIT 1) n
    WHERE EXISTS (SELECT FROM elsewhere)
      AND NOT coalesce(n.said_by = n.incarnation AND n.runs @> %(this_run)s::jsonb, false)
)
SELECT o.name AS node, c.date
FROM owner o CROSS JOIN (SELECT date FROM elsewhere UNION SELECT %(date)s) d
CROSS JOIN LATERAL (
    SELECT date FROM {claim}
    WHERE date = d.date AND task_key = o.task_key AND incarnation = o.incarnation LIMIT 1
) c
UNION
SELECT o.name, e.date FROM owner o CROSS JOIN elsewhere e
WHERE o.runs @> jsonb_build_array(
          jsonb_build_object('kind', 'batch', 'name', %(name)s::text, 'date', e.date::text))
  AND %(name)s::text IS NOT NULL

-- == for people ===================================================================================

-- name: list_nodes
SELECT n.name, CASE WHEN e.name IS NOT NULL THEN 'evicted' ELSE n.state END AS state, n.weight,
       coalesce(t.tokens, 0) AS tokens,
       n.incarnation = c.leader_incarnation AS is_leader,
       n.address, n.host, n.pid, n.joined, n.created_on,
       extract(epoch FROM clock_timestamp() - n.created_on)::double precision AS age_sec,
       n.last_heartbeat,
       extract(epoch FROM clock_timestamp() - n.last_heartbeat)::double precision
           AS heartbeat_age_sec,
       n.beat, {timeout} AS timeout_sec, {interval} AS interval_sec,
       CASE WHEN said_by = incarnation THEN n.library ELSE '0.1.0' END AS library,
       CASE WHEN said_by = incarnation THEN n.layout ELSE 1 END AS layout,
       CASE WHEN said_by = incarnation THEN n.runs END AS runs
FROM {node} n CROSS JOIN {cluster} c
LEFT JOIN (
    SELECT incarnation, count(*) AS tokens FROM {token} GROUP BY incarnation
) t USING (incarnation)
LEFT JOIN {evicted} e USING (incarnation)
ORDER BY n.joined

-- name: list_evicted
-- Names under which no worker joins, the first that was evicted first.
SELECT name, at, by, reason FROM {evicted} ORDER BY at, name

-- name: read_status
-- The cluster at a glance.
SELECT c.version, c.term, c.leader, c.generation, c.total_tokens, c.hash_function,
       c.schema_version, c.layout,
       (SELECT count(*) FROM {token} t WHERE token_id < c.total_tokens AND (t.incarnation IS NULL
            OR NOT EXISTS (SELECT FROM {node} n WHERE n.incarnation = t.incarnation))) AS unowned,
       (SELECT count(*) FROM {token} WHERE token_id < c.total_tokens) AS distributed
FROM {cluster} c

-- name: list_handoffs
-- Tokens on their way, by owner and receiver, and for how long the oldest has been.
SELECT node, nullif(next_node, '') AS receiver, count(*) AS tokens,
       extract(epoch FROM clock_timestamp() - min(revoked_at))::double precision AS oldest_sec
FROM {token} WHERE next_node IS NOT NULL GROUP BY node, next_node ORDER BY oldest_sec DESC

-- name: list_stuck
-- Tokens that are still in use at their owner past the hand-off time-out, the longest first.
SELECT n.name AS node, t.token_id, s.task_id,
       extract(epoch FROM clock_timestamp() - t.revoked_at)::double precision AS seconds
FROM {node} n CROSS JOIN LATERAL jsonb_to_recordset(n.stuck) AS s(token_id integer, task_id text)
CROSS JOIN LATERAL (
    SELECT token_id, revoked_at FROM {token}
    WHERE token_id = s.token_id AND incarnation = n.incarnation AND next_node IS NOT NULL LIMIT 1
) t
ORDER BY seconds DESC
