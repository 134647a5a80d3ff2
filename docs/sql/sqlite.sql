-- What a claim flow sends to sqlite, compiled from prefect_claim_dispatch/statements.

-- survey: what there is to do; an idle tick is this and nothing else
WITH RECURSIVE lane(id) AS
(SELECT (SELECT first.id
FROM action_logs AS first
WHERE first.status = 'pending' ORDER BY first.type, first.priority, first.end_at, first.id
 LIMIT 1 OFFSET :param_1) AS id UNION ALL SELECT (SELECT following.id
FROM action_logs AS following
WHERE following.status = 'pending' AND (following.type, following.priority) > (here.type, here.priority) ORDER BY following.type, following.priority, following.end_at, following.id
 LIMIT 1 OFFSET :param_2) AS anon_1
FROM lane JOIN action_logs AS here ON here.id = lane.id)
 SELECT head.type, head.priority, head.end_at, strftime('%Y-%m-%d %H:%M:%f', 'now') AS now
FROM lane JOIN action_logs AS head ON head.id = lane.id UNION ALL SELECT NULL AS type, NULL AS priority, (SELECT action_logs.lease_expires_at
FROM action_logs
WHERE action_logs.status = 'claimed' ORDER BY action_logs.lease_expires_at, action_logs.id
 LIMIT 1 OFFSET :param_3) AS end_at, strftime('%Y-%m-%d %H:%M:%f', 'now') AS now;

-- rescue: claims whose lease expired
SELECT action_logs.id, action_logs.type, coalesce(CAST(action_logs.payload AS TEXT), :coalesce_1) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, coalesce(CAST(action_logs.errors AS TEXT), :coalesce_2) AS errors, action_logs.claimed_by
FROM action_logs
WHERE action_logs.status = 'claimed' AND action_logs.lease_expires_at < strftime('%Y-%m-%d %H:%M:%f', 'now') ORDER BY action_logs.lease_expires_at, action_logs.id
 LIMIT :limit OFFSET :param_1;

-- claim: of one type and priority
UPDATE action_logs SET status=:status, claimed_at=strftime('%Y-%m-%d %H:%M:%f', 'now'), claimed_by=:claimed_by, claim_count=(action_logs.claim_count + :claim_count_1), lease_expires_at=strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', :lease_seconds)), run_id=:run_id, updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE action_logs.id IN (SELECT due.id
FROM (SELECT merged.id AS id, merged.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending' AND candidate.type = :type_0 AND candidate.priority = :priority_0 AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key AND running.status = 'claimed')) AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key AND earlier.id < candidate.id AND earlier.status IN ('pending', 'claimed') AND (earlier.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') OR earlier.claim_count > :claim_count_2))))) AS merged ORDER BY merged.end_at, merged.id
 LIMIT :limit OFFSET :param_1) AS due
 LIMIT :limit OFFSET :param_2) RETURNING id, type, coalesce(CAST(payload AS TEXT), :coalesce_1) AS payload, end_at AS end_at, created_at AS created_at, claim_count, fail_count, priority, idempotency_key, ordering_key, coalesce(CAST(errors AS TEXT), :coalesce_2) AS errors, claimed_by;

-- claim: of two types in one priority, and one in the next
UPDATE action_logs SET status=:status, claimed_at=strftime('%Y-%m-%d %H:%M:%f', 'now'), claimed_by=:claimed_by, claim_count=(action_logs.claim_count + :claim_count_1), lease_expires_at=strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', :lease_seconds)), run_id=:run_id, updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now') WHERE action_logs.id IN (SELECT due.id
FROM (SELECT turn_0.id AS id, turn_0.end_at AS end_at
FROM (SELECT merged.id AS id, merged.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending' AND candidate.type = :type_0 AND candidate.priority = :priority_0 AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key AND running.status = 'claimed')) AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key AND earlier.id < candidate.id AND earlier.status IN ('pending', 'claimed') AND (earlier.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') OR earlier.claim_count > :claim_count_2)))) UNION ALL SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending' AND candidate.type = :type_1 AND candidate.priority = :priority_1 AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key AND running.status = 'claimed')) AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key AND earlier.id < candidate.id AND earlier.status IN ('pending', 'claimed') AND (earlier.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') OR earlier.claim_count > :claim_count_3))))) AS merged ORDER BY merged.end_at, merged.id
 LIMIT :limit OFFSET :param_1) AS turn_0 UNION ALL SELECT turn_1.id AS id, turn_1.end_at AS end_at
FROM (SELECT merged.id AS id, merged.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending' AND candidate.type = :type_2 AND candidate.priority = :priority_2 AND candidate.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key AND running.status = 'claimed')) AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key AND earlier.id < candidate.id AND earlier.status IN ('pending', 'claimed') AND (earlier.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') OR earlier.claim_count > :claim_count_4))))) AS merged ORDER BY merged.end_at, merged.id
 LIMIT :limit OFFSET :param_2) AS turn_1) AS due
 LIMIT :limit OFFSET :param_3) RETURNING id, type, coalesce(CAST(payload AS TEXT), :coalesce_1) AS payload, end_at AS end_at, created_at AS created_at, claim_count, fail_count, priority, idempotency_key, ordering_key, coalesce(CAST(errors AS TEXT), :coalesce_2) AS errors, claimed_by;

-- begin: which runs work on which rows
UPDATE action_logs SET run_id=begun.run_id, updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now') FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count, CAST(json_extract(anon_1.value, :json_extract_3) AS TEXT) AS run_id
FROM json_each(:begun_rows) AS anon_1
 LIMIT :param_1 OFFSET :param_2) AS begun WHERE action_logs.id = begun.id AND action_logs.claim_count = begun.claim_count AND (action_logs.status || '') = 'claimed' RETURNING id;

-- renew: the leases of what still runs
UPDATE action_logs SET lease_expires_at=strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', :lease_seconds)), updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now') FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count
FROM json_each(:held_rows) AS anon_1
 LIMIT :param_1 OFFSET :param_2) AS held WHERE action_logs.id = held.id AND action_logs.claim_count = held.claim_count AND (action_logs.status || '') = 'claimed' AND action_logs.lease_expires_at > strftime('%Y-%m-%d %H:%M:%f', 'now') RETURNING id;

-- settle: what became of it
UPDATE action_logs SET end_at=CASE WHEN (settled.delay_seconds IS NULL) THEN action_logs.end_at ELSE strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', settled.delay_seconds)) END, status=settled.status, claimed_at=CASE WHEN (settled.status = :status_1) THEN CAST(NULL AS TEXT) ELSE action_logs.claimed_at END, claimed_by=CASE WHEN (settled.status = :status_1) THEN CAST(NULL AS TEXT) ELSE action_logs.claimed_by END, lease_expires_at=CAST(NULL AS TEXT), run_id=coalesce(settled.run_id, action_logs.run_id), fail_count=settled.fail_count, errors=coalesce(settled.errors, action_logs.errors), processed_at=CASE WHEN (settled.status = :status_2) THEN strftime('%Y-%m-%d %H:%M:%f', 'now') ELSE CAST(NULL AS TEXT) END, settled_at=CASE WHEN (settled.status = :status_1) THEN CAST(NULL AS TEXT) ELSE strftime('%Y-%m-%d %H:%M:%f', 'now') END, updated_at=strftime('%Y-%m-%d %H:%M:%f', 'now') FROM (SELECT CAST(json_extract(anon_1.value, :json_extract_1) AS BIGINT) AS id, CAST(json_extract(anon_1.value, :json_extract_2) AS BIGINT) AS claim_count, CAST(json_extract(anon_1.value, :json_extract_3) AS TEXT) AS status, CAST(json_extract(anon_1.value, :json_extract_4) AS INTEGER) AS fail_count, CAST(json_extract(anon_1.value, :json_extract_5) AS FLOAT) AS delay_seconds, CAST(json_extract(anon_1.value, :json_extract_6) AS TEXT) AS errors, CAST(json_extract(anon_1.value, :json_extract_7) AS TEXT) AS run_id
FROM json_each(:settled_rows) AS anon_1
 LIMIT :param_1 OFFSET :param_2) AS settled WHERE action_logs.id = settled.id AND action_logs.claim_count = settled.claim_count AND (action_logs.status || '') = 'claimed' RETURNING id;

-- count_due: once a run, where types have no processor
SELECT count(*) AS count_1
FROM action_logs
WHERE action_logs.status = 'pending' AND action_logs.type = :type AND action_logs.priority = :priority AND action_logs.end_at <= strftime('%Y-%m-%d %H:%M:%f', 'now');
