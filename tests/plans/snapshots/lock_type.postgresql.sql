-- quote_ident_1 = 'action_logs'
-- set_config_1 = 'idle_in_transaction_session_timeout'
-- set_config_2 = '5s'
SELECT pg_try_advisory_xact_lock(CAST(to_regclass(quote_ident(:quote_ident_1)) AS INTEGER), hashtext(:type::VARCHAR)) AS is_ours, set_config(:set_config_1::VARCHAR, :set_config_2::VARCHAR, true) AS at_most;
