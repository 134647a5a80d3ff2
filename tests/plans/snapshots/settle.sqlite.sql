-- json_extract_1 = '$[0]'
-- json_extract_2 = '$[1]'
-- json_extract_3 = '$[2]'
-- json_extract_4 = '$[3]'
-- json_extract_5 = '$[4]'
-- json_extract_6 = '$[5]'
-- json_extract_7 = '$[6]'
-- param_1 = -1
-- param_2 = 0
-- status_1 = 'pending'
-- status_2 = 'processed'
UPDATE action_logs
SET end_at=CASE WHEN (settled.delay_seconds IS NULL)
THEN action_logs.end_at
ELSE strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', settled.delay_seconds)) END, status=settled.status, claimed_at=CASE WHEN (settled.status = :status_1)
THEN CAST(NULL AS TEXT)
ELSE action_logs.claimed_at END, claimed_by=CASE WHEN (settled.status = :status_1)
THEN CAST(NULL AS TEXT)
ELSE action_logs.claimed_by END, lease_expires_at=CAST(NULL AS TEXT), run_id=coalesce(settled.run_id, action_logs.run_id), fail_count=settled.fail_count, errors=coalesce(settled.errors, action_logs.errors), processed_at=CASE WHEN (settled.status = :status_2)
THEN strftime('%Y-%m-%d %H:%M:%f', 'now')
ELSE CAST(NULL AS TEXT) END, settled_at=CASE WHEN (settled.status = :status_1)
THEN CAST(NULL AS TEXT)
ELSE strftime('%Y-%m-%d %H:%M:%f', 'now') END, updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now'), held_until=CASE WHEN (action_logs.ordering_key IS NULL)
THEN action_logs.held_until
ELSE CASE WHEN (settled.delay_seconds IS NULL)
THEN action_logs.end_at
ELSE strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', settled.delay_seconds)) END END
FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count, CAST(json_extract(anon_1.value, :json_extract_3) AS TEXT) AS status, CAST(json_extract(anon_1.value, :json_extract_4) AS INTEGER) AS fail_count, CAST(json_extract(anon_1.value, :json_extract_5) AS FLOAT) AS delay_seconds, CAST(json_extract(anon_1.value, :json_extract_6) AS TEXT) AS errors, CAST(json_extract(anon_1.value, :json_extract_7) AS TEXT) AS run_id
FROM json_each(:settled_rows) AS anon_1
LIMIT :param_1 OFFSET :param_2) AS settled
WHERE action_logs.id = settled.id
AND action_logs.claim_count = settled.claim_count
AND (action_logs.status || '') = 'claimed'
RETURNING id;
