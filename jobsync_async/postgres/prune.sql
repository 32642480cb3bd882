-- What deletes old days from a table that grows by days: {table}, whose primary key begins with or
-- holds the date and {key}. Form and rules are as in queries.sql.

-- name: next_day
-- The first day with rows, between two dates; null for none.
SELECT min(date) AS date FROM {table} WHERE date > %(after)s::date AND date < %(before)s

-- name: piece
-- How many rows of a day come next in the order of their keys, up to a bound, and the last key.
-- Keys that were deleted are not walked over again, which would be quadratic.
SELECT count(*) AS rows, (array_agg(key ORDER BY key DESC))[1] AS last
FROM (
    SELECT {key} AS key FROM {table} WHERE date = %(date)s AND {key} > %(after)s
    ORDER BY {key} FETCH FIRST (%(most)s) ROWS WITH TIES
) k

-- name: delete_piece
DELETE FROM {table} WHERE date = %(date)s AND {key} > %(after)s AND {key} <= %(last)s
