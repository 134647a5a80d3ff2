-- What a claim flow sends to postgresql, compiled from prefect_claim_dispatch/statements.

-- survey: what there is to do; an idle tick is this and nothing else
WITH RECURSIVE lane(id) AS
(SELECT (SELECT first.id
FROM action_logs AS first
WHERE first.status = 'pending' ORDER BY first.type, first.priority, first.end_at, first.id
 LIMIT 1) AS id UNION ALL SELECT (SELECT following.id
FROM action_logs AS following
WHERE following.status = 'pending' AND (following.type, following.priority) > (here.type, here.priority) ORDER BY following.type, following.priority, following.end_at, following.id
 LIMIT 1) AS anon_1
FROM lane JOIN action_logs AS here ON here.id = lane.id)
 SELECT head.type, head.priority, head.end_at, now() AS now
FROM lane JOIN action_logs AS head ON head.id = lane.id UNION ALL SELECT NULL AS type, NULL AS priority, (SELECT action_logs.lease_expires_at
FROM action_logs
WHERE action_logs.status = 'claimed' ORDER BY action_logs.lease_expires_at, action_logs.id
 LIMIT 1) AS end_at, now() AS now;

-- rescue: claims whose lease expired
SELECT action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by
FROM action_logs
WHERE action_logs.status = 'claimed' AND action_logs.lease_expires_at < now() ORDER BY action_logs.lease_expires_at, action_logs.id
 LIMIT :limit FOR UPDATE SKIP LOCKED;

-- claim: of one type and priority
UPDATE action_logs SET status=:status, claimed_at=now(), claimed_by=:claimed_by, claim_count=(action_logs.claim_count + :claim_count_1), lease_expires_at=(now() + make_interval(secs => :lease_seconds)), run_id=:run_id, updated_at=now() WHERE action_logs.id = ANY (array((SELECT locked.id
FROM (SELECT lane.id AS id, lane.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending' AND candidate.type = :type_0 AND candidate.priority = :priority_0 AND candidate.end_at <= now() AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key AND running.status = 'claimed')) AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key AND earlier.id < candidate.id AND earlier.status IN ('pending', 'claimed') AND (earlier.end_at <= now() OR earlier.claim_count > :claim_count_2))))) AS lane ORDER BY lane.end_at, lane.id
 LIMIT (SELECT CAST(NULL AS INTEGER) AS anon_1)) AS due JOIN LATERAL (SELECT row.id AS id
FROM action_logs AS row
WHERE row.id = due.id AND (row.status || '') = 'pending' AND row.end_at <= now() FOR UPDATE SKIP LOCKED) AS locked ON true
 LIMIT (SELECT :limit AS anon_2)))) RETURNING action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by;

-- claim: of two types in one priority, and one in the next
UPDATE action_logs SET status=:status, claimed_at=now(), claimed_by=:claimed_by, claim_count=(action_logs.claim_count + :claim_count_1), lease_expires_at=(now() + make_interval(secs => :lease_seconds)), run_id=:run_id, updated_at=now() WHERE action_logs.id = ANY (array((SELECT locked.id
FROM (SELECT turn_0.id AS id, turn_0.end_at AS end_at
FROM (SELECT merged.id AS id, merged.end_at AS end_at
FROM (SELECT lane_0.id AS id, lane_0.end_at AS end_at
FROM (SELECT lane.id AS id, lane.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending' AND candidate.type = :type_0 AND candidate.priority = :priority_0 AND candidate.end_at <= now() AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key AND running.status = 'claimed')) AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key AND earlier.id < candidate.id AND earlier.status IN ('pending', 'claimed') AND (earlier.end_at <= now() OR earlier.claim_count > :claim_count_2))))) AS lane ORDER BY lane.end_at, lane.id
 LIMIT (SELECT CAST(NULL AS INTEGER) AS anon_1)) AS lane_0 UNION ALL SELECT lane_1.id AS id, lane_1.end_at AS end_at
FROM (SELECT lane.id AS id, lane.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending' AND candidate.type = :type_1 AND candidate.priority = :priority_1 AND candidate.end_at <= now() AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key AND running.status = 'claimed')) AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key AND earlier.id < candidate.id AND earlier.status IN ('pending', 'claimed') AND (earlier.end_at <= now() OR earlier.claim_count > :claim_count_3))))) AS lane ORDER BY lane.end_at, lane.id
 LIMIT (SELECT CAST(NULL AS INTEGER) AS anon_1)) AS lane_1) AS merged ORDER BY merged.end_at, merged.id
 LIMIT (SELECT CAST(NULL AS INTEGER) AS anon_1)) AS turn_0 UNION ALL SELECT turn_1.id AS id, turn_1.end_at AS end_at
FROM (SELECT lane.id AS id, lane.end_at AS end_at
FROM (SELECT candidate.id AS id, candidate.end_at AS end_at
FROM action_logs AS candidate
WHERE candidate.status = 'pending' AND candidate.type = :type_2 AND candidate.priority = :priority_2 AND candidate.end_at <= now() AND (candidate.ordering_key IS NULL OR NOT (EXISTS (SELECT *
FROM action_logs AS running
WHERE running.ordering_key = candidate.ordering_key AND running.status = 'claimed')) AND NOT (EXISTS (SELECT *
FROM action_logs AS earlier
WHERE earlier.ordering_key = candidate.ordering_key AND earlier.id < candidate.id AND earlier.status IN ('pending', 'claimed') AND (earlier.end_at <= now() OR earlier.claim_count > :claim_count_4))))) AS lane ORDER BY lane.end_at, lane.id
 LIMIT (SELECT CAST(NULL AS INTEGER) AS anon_1)) AS turn_1) AS due JOIN LATERAL (SELECT row.id AS id
FROM action_logs AS row
WHERE row.id = due.id AND (row.status || '') = 'pending' AND row.end_at <= now() FOR UPDATE SKIP LOCKED) AS locked ON true
 LIMIT (SELECT :limit AS anon_2)))) RETURNING action_logs.id, action_logs.type, CAST(action_logs.payload AS TEXT) AS payload, action_logs.end_at AS end_at, action_logs.created_at AS created_at, action_logs.claim_count, action_logs.fail_count, action_logs.priority, action_logs.idempotency_key, action_logs.ordering_key, CAST(action_logs.errors AS TEXT) AS errors, action_logs.claimed_by;

-- begin: which runs work on which rows
UPDATE action_logs SET run_id=begun.run_id, updated_at=now() FROM unnest((SELECT :begun_id::BIGINT[] AS anon_1), (SELECT :begun_claim_count::BIGINT[] AS anon_2), (SELECT :begun_run_id::TEXT[] AS anon_3)) AS begun(id, claim_count, run_id) WHERE action_logs.id = begun.id AND action_logs.claim_count = begun.claim_count AND (action_logs.status || '') = 'claimed' RETURNING action_logs.id;

-- renew: the leases of what still runs
UPDATE action_logs SET lease_expires_at=(now() + make_interval(secs => :lease_seconds)), updated_at=now() FROM unnest((SELECT :held_id::BIGINT[] AS anon_1), (SELECT :held_claim_count::BIGINT[] AS anon_2)) AS held(id, claim_count) WHERE action_logs.id = held.id AND action_logs.claim_count = held.claim_count AND (action_logs.status || '') = 'claimed' AND action_logs.lease_expires_at > now() RETURNING action_logs.id;

-- settle: what became of it
UPDATE action_logs SET end_at=CASE WHEN (settled.delay_seconds IS NULL) THEN action_logs.end_at ELSE (now() + make_interval(secs => settled.delay_seconds)) END, status=settled.status, claimed_at=CASE WHEN (settled.status = :status_1) THEN CAST(NULL AS TIMESTAMP WITH TIME ZONE) ELSE action_logs.claimed_at END, claimed_by=CASE WHEN (settled.status = :status_1) THEN CAST(NULL AS TEXT) ELSE action_logs.claimed_by END, lease_expires_at=CAST(NULL AS TIMESTAMP WITH TIME ZONE), run_id=coalesce(settled.run_id, action_logs.run_id), fail_count=settled.fail_count, errors=coalesce(CAST(settled.errors AS JSONB), action_logs.errors), processed_at=CASE WHEN (settled.status = :status_2) THEN now() ELSE CAST(NULL AS TIMESTAMP WITH TIME ZONE) END, settled_at=CASE WHEN (settled.status = :status_1) THEN CAST(NULL AS TIMESTAMP WITH TIME ZONE) ELSE now() END, updated_at=now() FROM unnest((SELECT :settled_id::BIGINT[] AS anon_1), (SELECT :settled_claim_count::BIGINT[] AS anon_2), (SELECT :settled_status::TEXT[] AS anon_3), (SELECT :settled_fail_count::INTEGER[] AS anon_4), (SELECT :settled_delay_seconds::FLOAT[] AS anon_5), (SELECT :settled_errors::TEXT[] AS anon_6), (SELECT :settled_run_id::TEXT[] AS anon_7)) AS settled(id, claim_count, status, fail_count, delay_seconds, errors, run_id) WHERE action_logs.id = settled.id AND action_logs.claim_count = settled.claim_count AND (action_logs.status || '') = 'claimed' RETURNING action_logs.id;

-- count_due: once a run, where types have no processor
SELECT count(*) AS count_1
FROM action_logs
WHERE action_logs.status = 'pending' AND action_logs.type = :type AND action_logs.priority = :priority AND action_logs.end_at <= now();
