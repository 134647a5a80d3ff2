INSERT INTO action_logs_paused (type, reason) SELECT :pattern::VARCHAR AS anon_1, :reason::VARCHAR AS anon_2
WHERE true ON CONFLICT (type) DO NOTHING
RETURNING action_logs_paused.type;
