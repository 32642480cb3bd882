-- Layout 2: what schema.sql has beyond the tables of 0.1.0, new tables left out. Workers of 0.1.0
-- neither read nor write it. Each statement is a transaction of its own and locks one table; the
-- last one tells that it is done.
ALTER TABLE {cluster}
    ADD COLUMN IF NOT EXISTS layout integer NOT NULL DEFAULT 1,
    ADD COLUMN IF NOT EXISTS channel text,
    ADD COLUMN IF NOT EXISTS time_zone text,
    ADD COLUMN IF NOT EXISTS longest_wait double precision,
    ADD COLUMN IF NOT EXISTS longest_allowed double precision,
    ADD COLUMN IF NOT EXISTS paused_at timestamptz,
    ADD COLUMN IF NOT EXISTS paused_by text,
    ADD COLUMN IF NOT EXISTS pause_reason text;
ALTER TABLE {node}
    ADD COLUMN IF NOT EXISTS timeout_sec double precision,
    ADD COLUMN IF NOT EXISTS interval_sec double precision,
    ADD COLUMN IF NOT EXISTS library text,
    ADD COLUMN IF NOT EXISTS layout integer,
    ADD COLUMN IF NOT EXISTS runs jsonb,
    ADD COLUMN IF NOT EXISTS said_by uuid;
ALTER TABLE {claim}
    ADD COLUMN IF NOT EXISTS batch text,
    ADD COLUMN IF NOT EXISTS incarnation uuid,
    ADD COLUMN IF NOT EXISTS open boolean,
    ADD COLUMN IF NOT EXISTS owners_lost integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS set_aside_at timestamptz,
    ADD COLUMN IF NOT EXISTS failures integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS last_error text;
ALTER TABLE {audit}
    ADD COLUMN IF NOT EXISTS batch text;
ALTER TABLE {rebalance}
    ADD COLUMN IF NOT EXISTS causes bigint[],
    ADD COLUMN IF NOT EXISTS moves jsonb;
UPDATE {cluster} SET layout = 2 WHERE layout < 2;
