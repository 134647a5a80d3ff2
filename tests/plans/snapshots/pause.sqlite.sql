INSERT INTO action_logs_paused (type, reason) SELECT :pattern AS anon_1, :reason AS anon_2
WHERE 1 = 1 ON CONFLICT (type) DO NOTHING
RETURNING type;
