-- quote_ident_1 = 'action_logs'
-- quote_ident_2 = 'action_logs'
SELECT 'claim_dispatch_' || substr(encode(sha256(convert_to(quote_ident(pg_namespace.nspname) || '.' || quote_ident(pg_class.relname), 'UTF8')), 'hex'), 1, 32) AS channel, EXISTS (SELECT pg_trigger.tgrelid
FROM pg_trigger
WHERE pg_trigger.tgrelid = to_regclass(quote_ident(:quote_ident_1))
AND pg_trigger.tgname = 'claim_dispatch_wake_up'
AND pg_trigger.tgenabled != 'D') AS is_there, pg_backend_pid() AS backend_pid
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
WHERE pg_class.oid = to_regclass(quote_ident(:quote_ident_2));
