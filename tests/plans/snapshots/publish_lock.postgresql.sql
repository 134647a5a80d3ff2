SELECT action_logs.id
FROM action_logs
WHERE action_logs.id = ANY (array((SELECT (SELECT holder.id
FROM action_logs AS holder
WHERE holder.type = key.type
AND holder.idempotency_key = key.idempotency_key
AND holder.idempotency_key IS NOT NULL) AS anon_1
FROM unnest((SELECT CAST(:key_type::VARCHAR AS VARCHAR[]) AS anon_2), (SELECT CAST(:key_idempotency_key::VARCHAR AS VARCHAR[]) AS anon_3)) AS key(type, idempotency_key))))
ORDER BY action_logs.id FOR UPDATE;
