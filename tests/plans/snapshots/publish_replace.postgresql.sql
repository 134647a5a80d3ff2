-- fail_count = 0
UPDATE action_logs
SET payload=CAST(found.payload AS JSONB), end_at=coalesce(found.end_at, (now() + make_interval(secs => found.delay_seconds))), priority=found.priority, ordering_key=found.ordering_key, fail_count=:fail_count::INTEGER, updated_at=now()
FROM (SELECT (SELECT holder.id
FROM action_logs AS holder
WHERE holder.type = draft.type
AND holder.idempotency_key = draft.idempotency_key
AND holder.idempotency_key IS NOT NULL) AS id, draft.position AS position, draft.type AS type, draft.payload AS payload, draft.end_at AS end_at, draft.delay_seconds AS delay_seconds, draft.priority AS priority, draft.idempotency_key AS idempotency_key, draft.ordering_key AS ordering_key
FROM unnest((SELECT CAST(:draft_position::VARCHAR AS INTEGER[]) AS anon_1), (SELECT CAST(:draft_type::VARCHAR AS VARCHAR[]) AS anon_2), (SELECT CAST(:draft_payload::VARCHAR AS TEXT[]) AS anon_3), (SELECT CAST(:draft_end_at::VARCHAR AS TIMESTAMP WITH TIME ZONE[]) AS anon_4), (SELECT CAST(:draft_delay_seconds::VARCHAR AS FLOAT[]) AS anon_5), (SELECT CAST(:draft_priority::VARCHAR AS SMALLINT[]) AS anon_6), (SELECT CAST(:draft_idempotency_key::VARCHAR AS VARCHAR[]) AS anon_7), (SELECT CAST(:draft_ordering_key::VARCHAR AS VARCHAR[]) AS anon_8)) AS draft(position, type, payload, end_at, delay_seconds, priority, idempotency_key, ordering_key)
LIMIT ALL OFFSET 0) AS found
WHERE action_logs.id = found.id
AND (action_logs.status || '') = 'pending'
RETURNING action_logs.id, action_logs.type, action_logs.idempotency_key;
