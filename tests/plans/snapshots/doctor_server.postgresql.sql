-- current_setting_1 = 'server_version'
-- current_setting_2 = 'transaction_read_only'
-- current_setting_3 = 'on'
SELECT current_setting(:current_setting_1::VARCHAR) AS version, clock_timestamp() AS now, pg_backend_pid() AS backend_pid, current_setting(:current_setting_2::VARCHAR) = :current_setting_3::VARCHAR AS is_read_only;
