-- Three roles for the action table, each with what its work needs and no more. Run as a superuser in the application's database, after
-- `claim-dispatch db upgrade`, as often as you like; write your own names where you have set CLAIM_DISPATCH_TABLE or CLAIM_DISPATCH_SCHEMA.
-- The roles can't log in:
--     GRANT claim_dispatch_publisher TO web_application;
--     GRANT claim_dispatch_dispatcher TO prefect_worker;
--     GRANT claim_dispatch_operator TO on_call;
-- Migrations stay with the owner.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['claim_dispatch_publisher', 'claim_dispatch_dispatcher', 'claim_dispatch_operator'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON action_logs, action_logs_version, action_logs_paused FROM claim_dispatch_publisher, claim_dispatch_dispatcher, claim_dispatch_operator;

-- Publisher: inserts what an application may say, so that it can neither write history nor read payloads. Of what is there it sees the id, to
-- return it, and the columns by which a duplicate is found.
GRANT INSERT (type, payload, end_at, priority, idempotency_key, ordering_key) ON action_logs TO claim_dispatch_publisher;
GRANT SELECT (id, type, idempotency_key) ON action_logs TO claim_dispatch_publisher;
-- Where it publishes with on_conflict="replace", which rewrites actions that are pending still:
-- GRANT SELECT (status), UPDATE (payload, end_at, priority, ordering_key, fail_count, updated_at) ON action_logs TO claim_dispatch_publisher;

-- Dispatcher: reads actions and writes their life, but neither their type nor their payload; it inserts and deletes nothing.
GRANT SELECT ON action_logs, action_logs_version, action_logs_paused TO claim_dispatch_dispatcher;
GRANT UPDATE (
    end_at, status, claimed_at, claimed_by, claim_count, lease_expires_at, run_id, fail_count, errors, processed_at, settled_at, updated_at,
    held_until
) ON action_logs TO claim_dispatch_dispatcher;

-- Operator: status, retry, reschedule, cancel, pause, publish, and prune, the only one that deletes.
GRANT claim_dispatch_publisher, claim_dispatch_dispatcher TO claim_dispatch_operator;
GRANT DELETE ON action_logs TO claim_dispatch_operator;
GRANT INSERT, UPDATE, DELETE ON action_logs_paused TO claim_dispatch_operator;
