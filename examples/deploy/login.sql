\getenv password WORKER_PASSWORD
ALTER ROLE worker LOGIN PASSWORD :'password';
