INSERT INTO action_logs (type, payload, end_at) VALUES (:type::VARCHAR, CAST(:payload::VARCHAR AS JSONB), now())
RETURNING action_logs.id;
