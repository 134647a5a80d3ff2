SELECT (SELECT holder.id
FROM action_logs AS holder
WHERE holder.type = key.type
AND holder.idempotency_key = key.idempotency_key
AND holder.idempotency_key IS NOT NULL) AS id, key.type, key.idempotency_key
FROM unnest((SELECT CAST(:key_type::VARCHAR AS VARCHAR[]) AS anon_1), (SELECT CAST(:key_idempotency_key::VARCHAR AS VARCHAR[]) AS anon_2)) AS key(type, idempotency_key);
