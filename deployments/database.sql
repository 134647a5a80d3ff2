-- Run once by the compose file's PostgreSQL, on an empty volume: the application's role and database, beside the Prefect server's own.
\getenv password CLAIM_DISPATCH_PASSWORD
CREATE ROLE claim_dispatch LOGIN PASSWORD :'password';
CREATE DATABASE application OWNER claim_dispatch;
