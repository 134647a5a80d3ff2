-- quote_ident_1 = 'action_logs'
SELECT pg_stat_all_tables.n_live_tup AS live, pg_stat_all_tables.n_dead_tup AS dead
FROM pg_stat_all_tables
WHERE pg_stat_all_tables.relid = to_regclass(quote_ident(:quote_ident_1));
