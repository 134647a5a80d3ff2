-- quote_ident_1 = 'action_logs'
SELECT pg_class.relname AS name, pg_index.indisvalid AS is_valid
FROM pg_index JOIN pg_class ON pg_class.oid = pg_index.indexrelid
WHERE pg_index.indrelid = to_regclass(quote_ident(:quote_ident_1));
