INSERT INTO action_logs (type, payload, end_at, priority, idempotency_key, ordering_key) SELECT draft.type AS type, CAST(draft.payload AS JSONB) AS payload, coalesce(draft.end_at, (now() + make_interval(secs => draft.delay_seconds))) AS end_at, draft.priority AS priority, draft.idempotency_key AS idempotency_key, draft.ordering_key AS ordering_key
FROM unnest((SELECT :draft_position::INTEGER[] AS anon_1), (SELECT :draft_type::VARCHAR[] AS anon_2), (SELECT :draft_payload::TEXT[] AS anon_3), (SELECT :draft_end_at::TIMESTAMP WITH TIME ZONE[] AS anon_4), (SELECT :draft_delay_seconds::FLOAT[] AS anon_5), (SELECT :draft_priority::SMALLINT[] AS anon_6), (SELECT :draft_idempotency_key::VARCHAR[] AS anon_7), (SELECT :draft_ordering_key::VARCHAR[] AS anon_8)) AS draft(position, type, payload, end_at, delay_seconds, priority, idempotency_key, ordering_key)
WHERE true
ORDER BY draft.position ON CONFLICT (type, idempotency_key)
WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING action_logs.id, action_logs.type, action_logs.idempotency_key;
