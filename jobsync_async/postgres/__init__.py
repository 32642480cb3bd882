"""SQL and connections: every statement, and who sends it. Safety rests on the WHERE clauses in
queries.sql."""
