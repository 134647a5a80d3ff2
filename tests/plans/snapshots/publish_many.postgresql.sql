INSERT INTO action_logs (type, payload, end_at, priority, idempotency_key, ordering_key) SELECT draft.type AS type, CAST(draft.payload AS JSONB) AS payload, coalesce(draft.end_at, (now() + make_interval(secs => draft.delay_seconds))) AS end_at, draft.priority AS priority, draft.idempotency_key AS idempotency_key, draft.ordering_key AS ordering_key
FROM unnest((SELECT CAST(:draft_position::VARCHAR AS INTEGER[]) AS anon_1), (SELECT CAST(:draft_type::VARCHAR AS VARCHAR[]) AS anon_2), (SELECT CAST(:draft_payload::VARCHAR AS TEXT[]) AS anon_3), (SELECT CAST(:draft_end_at::VARCHAR AS TIMESTAMP WITH TIME ZONE[]) AS anon_4), (SELECT CAST(:draft_delay_seconds::VARCHAR AS FLOAT[]) AS anon_5), (SELECT CAST(:draft_priority::VARCHAR AS SMALLINT[]) AS anon_6), (SELECT CAST(:draft_idempotency_key::VARCHAR AS VARCHAR[]) AS anon_7), (SELECT CAST(:draft_ordering_key::VARCHAR AS VARCHAR[]) AS anon_8)) AS draft(position, type, payload, end_at, delay_seconds, priority, idempotency_key, ordering_key)
WHERE true
ORDER BY draft.position ON CONFLICT (type, idempotency_key)
WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING action_logs.id, action_logs.type, action_logs.idempotency_key;
