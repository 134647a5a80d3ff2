INSERT INTO action_logs (type, payload, end_at, priority, idempotency_key, ordering_key) SELECT :type AS type, :payload AS payload, coalesce(:end_at, strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', :delay_seconds))) AS end_at, :priority AS priority, :idempotency_key AS idempotency_key, :ordering_key AS ordering_key
WHERE 1 = 1 ON CONFLICT (type, idempotency_key)
WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id;
