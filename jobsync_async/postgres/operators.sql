-- The statements for people who look after a cluster: the observer's, and those of the command
-- line. Most read; where a worker writes the same, the command line uses its statement, in
-- queries.sql. Form and rules are as there.

-- name: look
-- All that an observer shows, in one atomic read: the cluster, its workers, and the tokens changed
-- since, each with the age number of its live owner.
SELECT c.version, c.announced, c.term, c.generation, c.total_tokens, c.hash_function,
       (SELECT name FROM {node} n WHERE n.incarnation = c.leader_incarnation) AS leader,
       workers.numbers, workers.names, workers.addresses, changed.token_ids, changed.owners
FROM {cluster} c
CROSS JOIN LATERAL (
    SELECT array_agg(joined ORDER BY joined) AS numbers, array_agg(name ORDER BY joined) AS names,
           array_agg(address ORDER BY joined) AS addresses
    FROM {node}
) workers
CROSS JOIN LATERAL (
    SELECT array_agg(t.token_id) AS token_ids, array_agg(o.joined) AS owners
    FROM (
        SELECT token_id, incarnation FROM {token}
        WHERE version > 0 AND version > %(since)s AND version < 9223372036854775807
        UNION ALL  -- as the first distribution made them: see read_changes
        SELECT token_id, incarnation FROM {token}
        WHERE version = 0 AND %(since)s < c.tokens_since
    ) t LEFT JOIN LATERAL (
        SELECT joined FROM {node} WHERE incarnation = t.incarnation LIMIT 1
    ) o ON true
    WHERE t.token_id < c.total_tokens  -- others are left over
) changed

-- name: pulse
-- The version, and what no version tells of, in one row: how long ago each worker's last heartbeat
-- was, and a digest of the rest of the workers' rows and of which pins have run out. Not md5: some
-- servers refuse it.
SELECT (SELECT version FROM {cluster}) AS version, array_agg(joined ORDER BY joined) AS numbers,
       array_agg(extract(epoch FROM clock_timestamp() - last_heartbeat)::double precision
                 ORDER BY joined) AS ages,
       hashtextextended(
           coalesce(string_agg(
               concat_ws(' ', joined, state, weight, said_by, timeout_sec, library, runs, stuck),
               ',' ORDER BY joined), '')
           || (SELECT count(*) FROM {lock} WHERE expires_at <= now()), 0) AS digest
FROM {node}

-- name: owners_of
SELECT t.token_id, n.name AS node, n.address, t.epoch
FROM {token} t
CROSS JOIN LATERAL (SELECT name, address FROM {node} WHERE incarnation = t.incarnation LIMIT 1) n
WHERE t.token_id = ANY(%(token_ids)s)

-- == history ======================================================================================

-- name: record_event
-- What a person does, in the transaction that does it. Where that takes a version, this comes after.
INSERT INTO {history} (version, kind, node, incarnation, by, reason, details)
SELECT version, %(kind)s, %(node)s, %(incarnation)s::uuid, %(by)s, %(reason)s, %(details)s::jsonb
FROM {cluster} RETURNING id

-- name: list_events
-- The latest that the history tells, of so many seconds, and of one worker, if that is asked for.
SELECT id, at, version, kind, node, by, term, reason, silent_sec, details
FROM {history}
WHERE at >= {asked_since} AND (%(node)s::text IS NULL OR node = %(node)s)
ORDER BY at DESC, id DESC LIMIT %(most)s

-- name: asked_since
-- Part of others: so many seconds ago, or ever.
coalesce(now() - %(since_sec)s::double precision * interval '1 second', '-infinity')

-- name: list_rebalances
-- The latest distributions, of so many seconds if that is asked for, with the rows of the history
-- that each answers.
SELECT version, at, reason, leader, term, nodes_before, nodes_after, tokens_moved, duration_ms,
       causes, moves
FROM {rebalance} WHERE at >= {asked_since} ORDER BY version DESC LIMIT %(most)s

-- name: read_leader
-- Who is said to lead, and whether it is there.
SELECT c.term, c.leader, n.address, n.incarnation IS NOT NULL AS present,
       extract(epoch FROM clock_timestamp() - n.last_heartbeat)::double precision
           AS heartbeat_age_sec
FROM {cluster} c LEFT JOIN {node} n ON n.incarnation = c.leader_incarnation

-- name: list_terms
-- The latest changes of the leader: when and how it was gone, and whether the leader before had
-- been started again, which a row of the same version tells.
SELECT t.term, t.at, t.kind, t.node, t.by, gone.at AS gone_at, gone.kind AS gone,
       again.restarted IS NOT NULL AS restarted
FROM (
    SELECT * FROM {history} WHERE term IS NOT NULL ORDER BY term DESC LIMIT %(most)s
) t LEFT JOIN LATERAL (
    SELECT at, kind FROM {history}
    WHERE incarnation = t.incarnation AND kind IN ('left', 'died', 'expired', 'evicted')
    ORDER BY id LIMIT 1
) gone ON true
LEFT JOIN LATERAL (
    SELECT true AS restarted FROM {history}
    WHERE version = t.version AND details ->> 'replaced' = t.details ->> 'incarnation_before'
    LIMIT 1
) again ON true
ORDER BY t.term DESC

-- == evicting =====================================================================================

-- name: find_evicted
-- And what the row of the worker is called that was put out, while it is there.
SELECT at, by, reason,
       (SELECT n.name FROM {node} n WHERE n.incarnation = e.incarnation) AS row
FROM {evicted} e WHERE e.name = %(name)s

-- name: evict_node
-- After take_version. The row gets another name, so that no heartbeat of this incarnation finds it
-- from now on, whatever its library. Otherwise it stays: the tokens are this incarnation's until
-- the row is expired, as any whose beat stands still. It is the youngest from now on, so that it
-- leads only if there is nobody else; it takes no tokens; and nobody is sent to its address.
WITH aged AS (
    UPDATE {cluster} SET last_joined = last_joined + 1
    WHERE EXISTS (SELECT FROM {node} WHERE name = %(name)s)
    RETURNING last_joined
)
UPDATE {node} n
SET name = n.name || ' (evicted, ' || last_joined || ')', joined = last_joined,
    state = 'draining', address = NULL, stuck = NULL, runs = NULL
FROM aged WHERE n.name = %(name)s
RETURNING n.name, n.incarnation, n.said_by IS DISTINCT FROM n.incarnation AS older

-- name: record_eviction
-- None of this name joins any more; who joins waits for the cluster's row, and sees it then.
INSERT INTO {evicted} (name, by, reason, incarnation)
VALUES (%(name)s, %(by)s, %(reason)s, %(incarnation)s::uuid)
ON CONFLICT (name) DO UPDATE
SET at = now(), by = excluded.by, reason = excluded.reason, incarnation = excluded.incarnation

-- name: lead_in_place_of
-- If the one that was evicted leads, the oldest of the others does from now on.
WITH led AS (
    UPDATE {cluster} c SET leader = n.name, leader_incarnation = n.incarnation, term = c.term + 1
    FROM (
        SELECT n.name, n.incarnation, b.leader, b.leader_incarnation
        FROM {node} n, {cluster} b WHERE n.incarnation <> %(incarnation)s::uuid
        ORDER BY n.joined LIMIT 1
    ) n
    WHERE c.leader_incarnation = %(incarnation)s::uuid
    RETURNING c.version, c.term, c.leader, c.leader_incarnation,
              n.leader AS before, n.leader_incarnation AS incarnation_before
)
{tell_who_leads}

-- name: allow_again
DELETE FROM {evicted} WHERE name = %(name)s

-- == explain ======================================================================================

-- name: explain_token
-- A token's row, its live owner, and the last distribution up to its last change.
SELECT t.node, t.epoch, nullif(t.next_node, '') AS next_node, t.next_node IS NOT NULL AS revoked,
       t.version, t.assigned_at,
       extract(epoch FROM clock_timestamp() - t.revoked_at)::double precision AS revoked_sec,
       n.name AS owner, n.address, n.state,
       extract(epoch FROM clock_timestamp() - n.last_heartbeat)::double precision
           AS heartbeat_age_sec,
       {timeout} AS timeout_sec, r.reason, r.at AS rebalanced_at, r.version AS rebalance_version
FROM {token} t CROSS JOIN {cluster} c
LEFT JOIN {node} n USING (incarnation)
LEFT JOIN LATERAL (
    SELECT reason, at, version FROM {rebalance}
    WHERE version <= t.version ORDER BY version DESC LIMIT 1
) r ON true
WHERE t.token_id = %(token_id)s

-- name: explain_task
-- Whether the task was begun or completed on a date, and by whom: outside of named batches first,
-- then in each that has it. `set_aside_on` is the date on which it was set aside, whichever that
-- was.
SELECT b.name AS batch, c.node AS begun_by, c.claimed_at, c.error,
       coalesce(c.failures, 0) AS failures, c.last_error,
       c.open AND EXISTS (SELECT FROM {node} WHERE incarnation = c.incarnation) AS running,
       greatest(c.owners_lost, s.owners_lost, 0) AS owners_lost,
       s.date AS set_aside_on, s.set_aside_at, a.node AS completed_by, a.completed_at
FROM (SELECT NULL AS name UNION SELECT name FROM {batch} WHERE date = %(date)s) b
CROSS JOIN LATERAL (
    -- as core/hashing.py makes it
    SELECT CASE WHEN b.name IS NULL THEN sha256(convert_to(%(task_id)s::text, 'UTF8'))
           ELSE substring(sha256(convert_to(b.name, 'UTF8')) FROM 1 FOR 8)
                || substring(sha256(convert_to(b.name, 'UTF8') || decode('00', 'hex')
                                    || convert_to(%(task_id)s::text, 'UTF8')) FROM 9)
           END AS task_key
) k
LEFT JOIN LATERAL (
    SELECT * FROM {claim} WHERE date = %(date)s AND task_key = k.task_key LIMIT 1
) c ON true
LEFT JOIN LATERAL (
    SELECT * FROM {audit} WHERE date = %(date)s AND task_key = k.task_key LIMIT 1
) a ON true
LEFT JOIN LATERAL (SELECT * FROM {set_aside} WHERE task_key = k.task_key LIMIT 1) s ON true
WHERE b.name IS NULL OR c.date IS NOT NULL OR a.date IS NOT NULL OR s.date IS NOT NULL
ORDER BY b.name NULLS FIRST

-- name: release_tasks
-- What is set aside may be begun again, with nobody lost to it. Null stands for all: tasks,
-- batches, dates.
WITH released AS (
    DELETE FROM {set_aside}
    WHERE (%(task_ids)s::text[] IS NULL OR task_id = ANY(%(task_ids)s))
      AND (%(batch)s::text IS NULL OR batch = %(batch)s)
      AND (%(date)s::date IS NULL OR date = %(date)s)
    RETURNING task_key, task_id, batch, date
), forgotten AS (
    UPDATE {claim} c SET set_aside_at = NULL, owners_lost = 0, error = NULL
    FROM released r WHERE c.date = r.date AND c.task_key = r.task_key
), told AS (
    INSERT INTO {history} (version, kind, by, details)
    SELECT version, 'released', %(by)s, jsonb_build_object(
               'ids', (SELECT count(*) FROM released),
               'first', (SELECT min(task_id) FROM released), 'batch', %(batch)s::text)
    FROM {cluster} WHERE EXISTS (SELECT FROM released)
)
SELECT task_id, batch, date FROM released ORDER BY date, batch NULLS FIRST, task_id

-- name: count_set_aside
-- How many ids are set aside, counted up to a bound.
SELECT count(*) AS ids FROM (SELECT FROM {set_aside} LIMIT %(most)s) s

-- name: connected
-- Of some workers, by their names, whether they have sessions on this server: known by their tags.
-- Whose row has none is left out.
SELECT n.name, EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND strpos(application_name, n.session_tag) > 0
) AS connected
FROM {node} n WHERE n.name = ANY(%(names)s) AND length(n.session_tag) > 8

-- == batches ======================================================================================

-- name: failed_ids
-- Part of others: what of the run `b` has failed: ids that are set aside, which holds on later
-- dates too, and ids that were given up; none that is complete. Where a batch has no name,
-- those of all batches without one on that date: the tables keep them under no other key. OFFSET 0
-- has each looked up by its key, whatever the statistics say: a join might read all of audit.
SELECT s.task_id, s.reason AS error, true AS set_aside
FROM {set_aside} s
WHERE s.batch IS NOT DISTINCT FROM b.name AND s.set_aside_at <= coalesce(b.finished_at, now())
  AND (b.name IS NOT NULL OR s.date = b.date
       OR EXISTS (SELECT FROM {batch} o WHERE o.batch_key = b.batch_key AND o.date = s.date))
  AND NOT EXISTS (
      SELECT FROM {audit} a WHERE a.date = b.date AND a.task_key = s.task_key OFFSET 0)
UNION ALL
SELECT c.task_id, c.error, false
FROM {claim} c
WHERE c.date = b.date AND c.error IS NOT NULL AND c.set_aside_at IS NULL
  AND c.batch IS NOT DISTINCT FROM b.name
  AND NOT EXISTS (
      SELECT FROM {audit} a WHERE a.date = c.date AND a.task_key = c.task_key OFFSET 0)

-- name: list_runs
-- Runs of batches, the open ones first, then the newest: how far each is by what its workers count,
-- and how many of its ids have failed, counted up to a bound. Null stands for all: batches, dates.
-- A batch is asked for by the key of its name, or, if it has none, by a range of keys. `unnamed` is
-- how many batches without a name have the same date as one of them.
WITH asked AS (
    SELECT * FROM {batch}
    WHERE (%(date)s::date IS NULL OR date = %(date)s)
      AND (%(name_key)s::bytea IS NULL OR batch_key = %(name_key)s
           OR name IS NULL AND batch_key BETWEEN %(low)s AND %(high)s)
), shown AS (
    SELECT * FROM asked
    ORDER BY finished_at IS NOT NULL, started_at DESC, date DESC LIMIT %(most)s
), unnamed AS (
    SELECT date, count(*) AS batches FROM {batch} WHERE name IS NULL GROUP BY date
)
SELECT b.batch_key, b.date, b.name, b.total, b.started_at, b.started_by, b.finished_at,
       b.completed_before, p.completed, p.otherwise, f.failed, coalesce(u.batches, 0) AS unnamed,
       (SELECT count(*) FROM asked) AS all_runs, clock_timestamp() AS at
FROM shown b
LEFT JOIN unnamed u ON u.date = b.date AND b.name IS NULL
CROSS JOIN LATERAL (
    SELECT coalesce(sum(completed), 0)::bigint AS completed,
           coalesce(sum(otherwise), 0)::bigint AS otherwise
    FROM {batch_part} WHERE batch_key = b.batch_key AND date = b.date
) p
CROSS JOIN LATERAL (
    SELECT count(*) AS failed FROM (SELECT FROM ({failed_ids}) i LIMIT %(most_failed)s) f
) f
ORDER BY b.finished_at IS NOT NULL, b.started_at DESC, b.date DESC

-- name: list_failed
-- Of one run, up to a bound; those that are set aside come first.
SELECT f.task_id, f.error, f.set_aside
FROM {batch} b CROSS JOIN LATERAL ({failed_ids}) f
WHERE b.batch_key = %(batch_key)s AND b.date = %(date)s
LIMIT %(most_failed)s

-- name: list_run_workers
-- Who has done how much of a run, and who says that it runs it now.
WITH part AS (
    SELECT node, sum(completed)::bigint AS completed, sum(otherwise)::bigint AS otherwise
    FROM {batch_part} WHERE batch_key = %(batch_key)s AND date = %(date)s GROUP BY node
), running AS (
    SELECT name AS node FROM {node} n WHERE {runs_it}
)
SELECT node, coalesce(completed, 0) AS completed, coalesce(otherwise, 0) AS otherwise,
       r.node IS NOT NULL AS runs_it
FROM part FULL JOIN running r USING (node) ORDER BY completed DESC, node

-- name: runs_it
-- Part of others: whether the worker `n` says that it runs a batch.
said_by = incarnation AND runs @> jsonb_build_array(jsonb_build_object(
    'kind', 'batch', 'name', %(name)s::text, 'date', (%(date)s::date)::text))

-- name: reopen_run
-- Opened anew, in such a way that whoever continues it looks at all its ids; not while a worker
-- says that it runs it, for that would not look again, nor while one does not say what it runs. Who
-- still waits for the opening before does not finish this one.
WITH reopened AS (
    UPDATE {batch} b
    SET finished_at = NULL, clean = false, started_at = clock_timestamp(), started_by = %(by)s,
        completed_before = (SELECT coalesce(sum(completed), 0) FROM {batch_part} p
                            WHERE p.batch_key = b.batch_key AND p.date = b.date)
    WHERE batch_key = %(batch_key)s AND date = %(date)s
      AND NOT EXISTS (SELECT FROM {node} n WHERE said_by IS DISTINCT FROM incarnation OR {runs_it})
    RETURNING started_at, name, date
), told AS (
    INSERT INTO {history} (version, kind, by, details)
    SELECT version, 'retried', %(by)s, jsonb_build_object('batch', r.name, 'date', r.date)
    FROM reopened r CROSS JOIN {cluster}
)
SELECT started_at FROM reopened

-- name: forget_failed
-- Some of what was given up in a run of a batch, in the order of its keys, is forgotten, and is not
-- counted any more as whose it was counted. Only what was begun before the run was opened anew:
-- whoever continues it has begun the rest.
WITH looked_at AS (
    SELECT task_key FROM {claim}
    WHERE date = %(date)s AND error IS NOT NULL AND task_key > %(after)s
    ORDER BY task_key LIMIT %(most)s
), forgotten AS (
    UPDATE {claim} c SET error = NULL
    FROM looked_at s
    WHERE c.date = %(date)s AND c.task_key = s.task_key AND c.error IS NOT NULL
      AND c.set_aside_at IS NULL AND c.claimed_at < %(started_at)s
      AND c.batch IS NOT DISTINCT FROM %(name)s
      AND NOT EXISTS (
          SELECT FROM {audit} a WHERE a.date = c.date AND a.task_key = c.task_key OFFSET 0)
    RETURNING c.incarnation
), counted AS (
    UPDATE {batch_part} p SET otherwise = p.otherwise - f.ids
    FROM (SELECT incarnation, count(*) AS ids FROM forgotten GROUP BY incarnation) f
    WHERE p.batch_key = %(batch_key)s AND p.date = %(date)s AND p.incarnation = f.incarnation
)
SELECT (SELECT count(*) FROM forgotten) AS forgotten,
       (SELECT task_key FROM looked_at ORDER BY task_key DESC LIMIT 1) AS last

-- == old days =====================================================================================

-- name: hold_runs
-- For the rest of the transaction no run of a batch is begun or finished. Whoever begins one waits.
LOCK TABLE {batch} IN SHARE ROW EXCLUSIVE MODE

-- name: list_kept
-- Runs that keep days before a date: those that are open, and those that a worker says it runs. Of
-- batches without a name, it may be any of that date.
SELECT date, name, batch_key FROM {batch} WHERE date < %(before)s AND finished_at IS NULL
UNION
SELECT r.date, r.name, b.batch_key FROM {node} n
CROSS JOIN LATERAL jsonb_to_recordset(n.runs) AS r(kind text, name text, date date)
LEFT JOIN {batch} b ON b.date = r.date AND b.name IS NOT DISTINCT FROM r.name
WHERE n.said_by = n.incarnation AND r.kind = 'batch' AND r.date < %(before)s
ORDER BY date, name, batch_key

-- name: count_old
-- What forget_events and forget_rebalances delete in the end.
SELECT (
    SELECT count(*) FROM {history} WHERE at < {long_ago} AND id IS DISTINCT FROM (
        SELECT id FROM {history} WHERE term IS NOT NULL ORDER BY term DESC LIMIT 1)
) AS events, (
    SELECT count(*) FROM {rebalance}
    WHERE at < {long_ago} AND version < (SELECT max(version) FROM {rebalance})
) AS rebalances

-- == doctor =======================================================================================

-- name: doctor_server
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::integer AS version_num,
       current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only')::boolean AS read_only,
       current_user AS role, current_database() AS database,
       current_setting('max_connections')::integer
           - current_setting('superuser_reserved_connections')::integer AS connections_most,
       (SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend') AS connections_used,
       coalesce(current_setting('idle_session_timeout', true), '0') AS idle_session_timeout,
       current_setting('fsync')::boolean AS fsync,
       current_setting('full_page_writes')::boolean AS full_page_writes,
       pg_backend_pid() AS backend_pid, pg_notification_queue_usage() AS queue_usage,
       current_setting('application_name') AS session_name

-- name: doctor_clock
SELECT extract(epoch FROM clock_timestamp())::double precision AS seconds

-- name: doctor_rights
-- What this role may do with each table, and what a worker needs to do there that it may not; no
-- row for a table that is not there. A right to update some columns is one to update.
SELECT c.relname::text AS table, has_table_privilege(c.oid, 'SELECT') AS reads,
       has_table_privilege(c.oid, 'INSERT, DELETE')
           OR has_any_column_privilege(c.oid, 'UPDATE') AS writes,
       ARRAY(SELECT what FROM unnest(string_to_array(w.needed, ' ')) AS what
             WHERE NOT CASE what WHEN 'UPDATE' THEN has_any_column_privilege(c.oid, what)
                            ELSE has_table_privilege(c.oid, what) END) AS lacks
FROM unnest(%(tables)s::text[], %(needed)s::text[]) AS w(name, needed)
JOIN pg_class c ON c.relname = w.name
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s ORDER BY c.relname

-- name: doctor_may_use
SELECT has_schema_privilege(oid, 'USAGE') AS uses FROM pg_namespace WHERE nspname = %(schema)s

-- name: doctor_sizes
-- Bytes and rows of each table. Dead rows are those that vacuum has yet to remove, by the
-- statistics.
SELECT c.relname::text AS table, pg_relation_size(c.oid) AS bytes,
       s.n_live_tup AS live, s.n_dead_tup AS dead
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE n.nspname = %(schema)s AND c.relname = ANY(%(tables)s) ORDER BY c.relname

-- name: doctor_transactions
-- The oldest transaction of this database: vacuum removes nothing that it may still see.
SELECT pid, application_name, state,
       extract(epoch FROM clock_timestamp() - xact_start)::double precision AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
  AND backend_type = 'client backend'
ORDER BY xact_start LIMIT 1

-- == the bound on timeouts ========================================================================

-- name: read_bound
-- And up to where the server's log is written.
SELECT longest_wait, longest_allowed, pg_current_wal_insert_lsn()::text AS written FROM {cluster}

-- name: above_bound
-- Workers that a lower bound would not fit, or that do not say whether it does. The cluster's row
-- is locked: none joins meanwhile.
SELECT n.name FROM {node} n
WHERE n.said_by IS DISTINCT FROM n.incarnation OR n.timeout_sec > %(bound)s ORDER BY n.joined

-- name: set_bound
-- Raised, it is at first only how long workers wait; lowered, it is both at once.
UPDATE {cluster} SET longest_wait = %(bound)s,
    longest_allowed = CASE WHEN longest_allowed > %(bound)s THEN %(bound)s ELSE longest_allowed END
WHERE {sound}

-- name: allow_bound
UPDATE {cluster} SET longest_allowed = %(bound)s WHERE {sound} AND longest_wait = %(bound)s

-- name: replicas_without
-- Copies of the server that may not have what was written up to a place: those connected, as far as
-- this role may see how far they are, and those that a slot waits for. What makes a backup is none.
SELECT concat_ws(' ', application_name, 'at', coalesce(host(client_addr), 'this host')) AS replica
FROM pg_stat_replication
WHERE (flush_lsn >= %(written)s::pg_lsn) IS NOT TRUE AND state IS DISTINCT FROM 'backup'
UNION ALL
SELECT concat_ws(' ', 'whoever uses the slot', slot_name) FROM pg_replication_slots
WHERE slot_type = 'physical' AND NOT active AND restart_lsn < %(written)s::pg_lsn

-- == pins =========================================================================================

-- name: delete_pins_of_tasks
DELETE FROM {lock} WHERE task_key = ANY(%(task_keys)s)

-- == versions =====================================================================================

-- name: raise_schema_version
-- Workers that know no layout as new as this are refused when they start. Comes in one message with
-- refuse_older.
UPDATE {cluster} SET schema_version = %(layout)s
WHERE schema_version < %(layout)s AND layout >= %(layout)s

-- name: refuse_older
-- And the very statement that makes such a worker's row is refused, also one that has started
-- before. It fails, and both are undone, while there is a row of such a worker.
ALTER TABLE {node} DROP CONSTRAINT IF EXISTS {too_old},
    ADD CONSTRAINT {too_old} CHECK (coalesce(layout >= %(layout)s AND said_by = incarnation, false))

-- name: list_older
-- The workers that are in the way of it, with their versions.
SELECT array_agg(
           name || ' (' || CASE WHEN said_by = incarnation THEN library ELSE '0.1.0' END || ')'
           ORDER BY joined) AS names
FROM {node} WHERE NOT coalesce(layout >= %(layout)s AND said_by = incarnation, false)
