INSERT INTO action_logs (type, payload, end_at, priority, idempotency_key, ordering_key) SELECT :type::VARCHAR AS type, CAST(:payload::VARCHAR AS JSONB) AS payload, coalesce(:end_at::TIMESTAMP WITH TIME ZONE, (now() + make_interval(secs => :delay_seconds))) AS end_at, :priority::SMALLINT AS priority, :idempotency_key::VARCHAR AS idempotency_key, :ordering_key::VARCHAR AS ordering_key
WHERE true ON CONFLICT (type, idempotency_key)
WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING action_logs.id;
