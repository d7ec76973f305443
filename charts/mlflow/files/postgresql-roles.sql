-- Each service has a role and a database of its own; run at every start, changes only what differs.
\getenv postgres_password POSTGRES_PASSWORD
\getenv mlflow_user MLFLOW_USER
\getenv mlflow_password MLFLOW_PASSWORD
\getenv mlflow_database MLFLOW_DATABASE
\getenv training_user TRAINING_USER
\getenv training_password TRAINING_PASSWORD
\getenv training_database TRAINING_DATABASE

ALTER ROLE postgres PASSWORD :'postgres_password';

SELECT format('CREATE ROLE %I', :'mlflow_user')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'mlflow_user') \gexec
ALTER ROLE :"mlflow_user" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'mlflow_password';
SELECT format('CREATE DATABASE %I OWNER %I', :'mlflow_database', :'mlflow_user')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'mlflow_database') \gexec
REVOKE CONNECT, TEMPORARY ON DATABASE :"mlflow_database" FROM PUBLIC;

SELECT format('CREATE ROLE %I', :'training_user')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'training_user') \gexec
ALTER ROLE :"training_user" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'training_password';
SELECT format('CREATE DATABASE %I OWNER %I', :'training_database', :'training_user')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'training_database') \gexec
REVOKE CONNECT, TEMPORARY ON DATABASE :"training_database" FROM PUBLIC;
