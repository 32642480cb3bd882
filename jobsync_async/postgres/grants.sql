-- What the three kinds of roles may do, and nothing else. {role} is quoted once.

-- name: worker
-- All that a worker does. It cannot create, truncate or drop, nor change the cluster's fixed
-- settings, nor delete tokens, nor change or delete what was completed. It cannot change what the
-- history says, but delete it: old rows go by age.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT, INSERT,
    UPDATE (leader, leader_incarnation, term, version, announced, generation, pin_version,
            planned_joined, last_joined, tokens_since, server_identity, time_zone, longest_wait,
            longest_allowed, paused_at, paused_by, pause_reason)
    ON {cluster} TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON {node}, {evicted}, {lock} TO {role};
GRANT SELECT, INSERT, UPDATE ON {token}, {claim}, {batch}, {batch_part} TO {role};
GRANT SELECT, INSERT ON {audit} TO {role};
GRANT SELECT, INSERT, DELETE ON {set_aside}, {rebalance}, {history} TO {role};

-- name: observer
-- Reads everything, writes nothing.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT
    ON {cluster}, {node}, {evicted}, {token}, {lock}, {claim}, {set_aside}, {audit}, {batch},
       {batch_part}, {rebalance}, {history}
    TO {role};

-- name: pruner
-- Reads what says which days may go, and deletes these.
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON {cluster}, {node} TO {role};
GRANT SELECT, DELETE
    ON {claim}, {audit}, {batch}, {batch_part}, {rebalance}, {history}
    TO {role};
