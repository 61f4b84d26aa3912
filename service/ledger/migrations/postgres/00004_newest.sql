-- +goose Up

-- While a transaction elsewhere keeps an old snapshot (a dump, a report), no old version of a row goes, and a look-up by
-- key walks past all of them: after an hour there are 36,000 of a company. So what every claim and settle writes is looked
-- up by an index whose last column grows with the versions, from its end. They are on expressions so that only the queries
-- meant for them can use them, and these nothing else.
ALTER TABLE company ADD COLUMN era BIGINT NOT NULL DEFAULT 0; -- grows once in 64 claims: updates between stay heap-only
CREATE INDEX company_newest ON company ((id + 0), era);
CREATE INDEX share_newest ON share ((company + 0), (lane + 0), caller, start_tag);
CREATE INDEX queue_newest ON queue ((company + 0), (id + 0), start_tag);

-- A unique index walks past them too, at every update that is not heap-only. Rows of these tables are made under a lock of
-- their company for that ({alone}), and looked for before.
ALTER TABLE company DROP CONSTRAINT company_pkey, DROP CONSTRAINT company_name_key;
ALTER TABLE share DROP CONSTRAINT share_pkey;
ALTER TABLE queue DROP CONSTRAINT queue_pkey;
DROP INDEX queue_loose, queue_request;
-- Who replicates the ledger logically needs something that tells rows apart.
ALTER TABLE company REPLICA IDENTITY FULL;
ALTER TABLE share REPLICA IDENTITY FULL;
ALTER TABLE queue REPLICA IDENTITY FULL;
CREATE INDEX company_id ON company (id);
CREATE INDEX company_name ON company (name);
CREATE INDEX share_id ON share (company, lane, caller);
CREATE INDEX queue_id ON queue (company, id);
CREATE INDEX queue_loose ON queue (company, lane, caller) WHERE batch = 0;
CREATE INDEX queue_request ON queue (company, caller, request_id) WHERE request_id IS NOT NULL;

-- +goose Down

ALTER TABLE queue REPLICA IDENTITY DEFAULT;
ALTER TABLE share REPLICA IDENTITY DEFAULT;
ALTER TABLE company REPLICA IDENTITY DEFAULT;
DROP INDEX queue_request, queue_loose, queue_id, share_id, company_name, company_id;
ALTER TABLE company ADD PRIMARY KEY (id), ADD UNIQUE (name);
ALTER TABLE share ADD PRIMARY KEY (company, lane, caller);
ALTER TABLE queue ADD PRIMARY KEY (company, id);
CREATE UNIQUE INDEX queue_loose ON queue (company, lane, caller) WHERE batch = 0;
CREATE UNIQUE INDEX queue_request ON queue (company, caller, request_id) WHERE request_id IS NOT NULL;

DROP INDEX queue_newest, share_newest, company_newest;
ALTER TABLE company DROP COLUMN era;
