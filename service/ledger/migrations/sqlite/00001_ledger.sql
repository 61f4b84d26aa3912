-- Times are microseconds on the database's clock. Flags are 0 or 1. Both dialects have the same tables, columns,
-- indexes and checks; ../postgres says what differs.

-- +goose Up

CREATE TABLE company (
  id             BIGINT NOT NULL PRIMARY KEY,
  name           TEXT   NOT NULL UNIQUE,
  claim_no       BIGINT NOT NULL DEFAULT 0,
  urgent_virtual BIGINT NOT NULL DEFAULT 0,
  normal_virtual BIGINT NOT NULL DEFAULT 0,
  bulk_virtual   BIGINT NOT NULL DEFAULT 0,
  pace           BLOB
);

-- A caller's share of a lane.
CREATE TABLE share (
  company       BIGINT   NOT NULL,
  lane          SMALLINT NOT NULL,
  caller        TEXT     NOT NULL,
  weight        BIGINT   NOT NULL DEFAULT 1,
  start_tag     BIGINT   NOT NULL DEFAULT 0,
  queue_virtual BIGINT   NOT NULL DEFAULT 0,
  served        BIGINT   NOT NULL DEFAULT 0, -- claims, ever
  ready         SMALLINT NOT NULL DEFAULT 0,
  PRIMARY KEY (company, lane, caller),
  CHECK (lane IN (1, 2, 3)),
  CHECK (weight > 0),
  CHECK (ready IN (0, 1))
);
CREATE INDEX share_ready ON share (company, lane, start_tag, caller) WHERE ready = 1;

-- A batch, or a caller's loose sends in a lane.
CREATE TABLE queue (
  company        BIGINT   NOT NULL,
  id             BIGINT   NOT NULL,
  lane           SMALLINT NOT NULL,
  caller         TEXT     NOT NULL,
  batch          SMALLINT NOT NULL DEFAULT 0,
  state          TEXT     NOT NULL DEFAULT 'open',
  ready          SMALLINT NOT NULL DEFAULT 0,
  weight         BIGINT   NOT NULL DEFAULT 1,
  start_tag      BIGINT   NOT NULL DEFAULT 0,
  head_pos       BIGINT   NOT NULL DEFAULT 0, -- a hint: no send before it is likely to be claimable
  looked_at      BIGINT   NOT NULL DEFAULT 0, -- when a claim last looked from the beginning
  next_result    BIGINT   NOT NULL DEFAULT 1,
  sending        BIGINT   NOT NULL DEFAULT 0,
  left_scheduled BIGINT   NOT NULL DEFAULT 0, -- of those that tally.scheduled counts
  sent           BIGINT   NOT NULL DEFAULT 0,
  failed         BIGINT   NOT NULL DEFAULT 0,
  unknown        BIGINT   NOT NULL DEFAULT 0,
  cancelled      BIGINT   NOT NULL DEFAULT 0,
  expired        BIGINT   NOT NULL DEFAULT 0,
  created_at     BIGINT   NOT NULL,
  -- Of batches only:
  bot            TEXT     NOT NULL DEFAULT '',
  labels         TEXT     NOT NULL DEFAULT '',
  spec           BLOB,               -- what the batch was created with, opaque
  request_id     TEXT,
  hash           BLOB,
  hash_version   SMALLINT NOT NULL DEFAULT 0,
  source_queue   BIGINT,             -- the batch that this one replays
  source_pos     BIGINT   NOT NULL DEFAULT 0, -- up to which of its sends the source was replayed
  source_filter  TEXT,               -- which of them, as JSON
  uploader       BIGINT   NOT NULL DEFAULT 0, -- counts the streams that uploaded; only the newest may
  uploaded_at    BIGINT,             -- when an uploader was last seen
  item_count     BIGINT,             -- how many items it has, once it is sealed; -1: sealed, and still being filled by a replay
  sealed_at      BIGINT,
  cancelled_at   BIGINT,
  ended_at       BIGINT,             -- when the last item had its result
  dropped_result BIGINT   NOT NULL DEFAULT 0, -- results up to this number are deleted: the batch is on its way out
  PRIMARY KEY (company, id),
  CHECK (lane IN (1, 2, 3)),
  CHECK (batch IN (0, 1)),
  CHECK (state IN ('open', 'paused', 'cancelled', 'closed')),
  CHECK (batch = 1 OR state = 'open'),
  CHECK (ready IN (0, 1)),
  CHECK (weight > 0),
  CHECK ((item_count IS NULL) = (sealed_at IS NULL)),
  CHECK ((state = 'cancelled') = (cancelled_at IS NOT NULL)),
  CHECK (state <> 'closed' OR (ended_at IS NOT NULL AND item_count IS NOT NULL)),
  CHECK (sending >= 0 AND left_scheduled >= 0 AND sent >= 0 AND failed >= 0 AND unknown >= 0 AND cancelled >= 0 AND expired >= 0)
);
CREATE INDEX queue_ready ON queue (company, lane, caller, start_tag, id) WHERE state = 'open' AND ready = 1;
CREATE INDEX queue_live ON queue (company, lane, caller) WHERE state IN ('open', 'paused');
CREATE INDEX queue_cancelled ON queue (cancelled_at) WHERE state = 'cancelled' AND ended_at IS NULL;
CREATE INDEX queue_unsealed ON queue (uploaded_at) WHERE batch = 1 AND item_count IS NULL;
CREATE INDEX queue_replaying ON queue (created_at) WHERE item_count = -1;
CREATE INDEX queue_ended ON queue (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX queue_listed ON queue (caller, company, created_at, id) WHERE batch = 1;
CREATE UNIQUE INDEX queue_loose ON queue (company, lane, caller) WHERE batch = 0;
CREATE UNIQUE INDEX queue_request ON queue (company, caller, request_id) WHERE request_id IS NOT NULL;

-- How many sends were added to a queue. Apart from the queue, so that adds do not wait for claims; in stripes, so
-- that replicas do not wait for each other.
CREATE TABLE tally (
  company   BIGINT   NOT NULL,
  queue     BIGINT   NOT NULL,
  stripe    SMALLINT NOT NULL,
  added     BIGINT   NOT NULL DEFAULT 0,
  scheduled BIGINT   NOT NULL DEFAULT 0,
  PRIMARY KEY (company, queue, stripe)
);

CREATE TABLE send (
  company      BIGINT   NOT NULL,
  queue        BIGINT   NOT NULL,
  pos          BIGINT   NOT NULL,
  lane         SMALLINT NOT NULL,
  caller       TEXT     NOT NULL,
  bot          TEXT     NOT NULL,
  recipient    TEXT     NOT NULL DEFAULT '', -- empty: outside the order per recipient
  kind         TEXT     NOT NULL DEFAULT '',
  labels       TEXT     NOT NULL DEFAULT '',
  state        TEXT     NOT NULL,
  parked       SMALLINT NOT NULL DEFAULT 0,  -- 1: its recipient is busy; 2: backoff, until due_at
  attempt      INTEGER  NOT NULL DEFAULT 0,
  on_unknown   SMALLINT NOT NULL DEFAULT 0,  -- 0 hold, 1 retry, 2 fail
  resolved     SMALLINT NOT NULL DEFAULT 0,
  claim        BIGINT,
  claimant     TEXT,
  owner        TEXT,
  accepted_at  BIGINT   NOT NULL,
  due_at       BIGINT,
  expire_at    BIGINT,
  lease_until  BIGINT,
  late_until   BIGINT,                       -- of what became unknown: until when its claimant may have evidence
  sent_at      BIGINT,
  settled_at   BIGINT,
  result_no    BIGINT,
  reason       TEXT     NOT NULL DEFAULT '',
  replay_queue BIGINT,
  replay_pos   BIGINT,
  request_id   TEXT,
  hash         BLOB,
  hash_version SMALLINT NOT NULL DEFAULT 0,
  result       BLOB,
  body         BLOB,
  PRIMARY KEY (company, queue, pos),
  CHECK (lane IN (1, 2, 3)),
  CHECK (state IN ('scheduled', 'pending', 'sending', 'sent', 'failed', 'unknown', 'cancelled', 'expired')),
  CHECK (parked IN (0, 1, 2)),
  CHECK (on_unknown IN (0, 1, 2)),
  CHECK (resolved IN (0, 1)),
  CHECK (attempt >= 0),
  CHECK ((state = 'sending') = (lease_until IS NOT NULL)),
  CHECK (state NOT IN ('sending', 'sent', 'unknown') OR claim IS NOT NULL),
  CHECK (parked = 0 OR state = 'pending'),
  CHECK (parked <> 1 OR recipient <> ''),
  CHECK (parked <> 2 OR due_at IS NOT NULL),
  CHECK (state <> 'scheduled' OR due_at IS NOT NULL),
  CHECK ((state IN ('sent', 'failed', 'unknown', 'cancelled', 'expired')) = (result_no IS NOT NULL)),
  CHECK ((result_no IS NULL) = (settled_at IS NULL)),
  CHECK (resolved = 0 OR state IN ('sent', 'failed')),
  CHECK ((replay_queue IS NULL) = (replay_pos IS NULL))
) WITHOUT ROWID;
CREATE UNIQUE INDEX send_request ON send (company, caller, request_id) WHERE request_id IS NOT NULL;
CREATE UNIQUE INDEX send_replay ON send (company, replay_queue, replay_pos) WHERE replay_queue IS NOT NULL;
CREATE UNIQUE INDEX send_result ON send (company, queue, result_no) WHERE result_no IS NOT NULL;
CREATE INDEX send_ready ON send (company, queue, pos) WHERE state = 'pending' AND parked = 0;
CREATE INDEX send_parked ON send (company, bot, recipient, lane, queue, pos) WHERE parked = 1;
CREATE INDEX send_sending ON send (company, bot, recipient, lane) WHERE state = 'sending';
CREATE INDEX send_backoff ON send (company, bot, recipient, lane) WHERE parked = 2;
CREATE INDEX send_lease ON send (company, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX send_due ON send (due_at) WHERE state = 'scheduled' OR parked = 2;
CREATE INDEX send_expire ON send (expire_at) WHERE expire_at IS NOT NULL AND state IN ('scheduled', 'pending');
CREATE INDEX send_owner ON send (owner) WHERE owner IS NOT NULL AND state IN ('scheduled', 'pending');
CREATE INDEX send_unknown ON send (settled_at) WHERE state = 'unknown';
CREATE INDEX send_settled ON send (settled_at) WHERE settled_at IS NOT NULL;
-- Not by company first: while PostgreSQL believes that the table is small it would take them for look-ups by key.
CREATE INDEX send_listed ON send (caller, company, accepted_at, queue, pos);
CREATE INDEX send_amiss ON send (company, queue, pos) WHERE state IN ('failed', 'unknown', 'expired');
CREATE INDEX send_amiss_listed ON send (caller, company, accepted_at, queue, pos) WHERE state IN ('failed', 'unknown', 'expired');

-- Who got a send lately in a company that leaves a time between two sends to one user.
CREATE TABLE gap (
  company   BIGINT NOT NULL,
  bot       TEXT   NOT NULL,
  recipient TEXT   NOT NULL,
  until     BIGINT NOT NULL,
  PRIMARY KEY (company, bot, recipient)
);
CREATE INDEX gap_until ON gap (until);

-- The running processes, for sends that live no longer than the process whose caller waits for them.
CREATE TABLE replica (
  id          TEXT   NOT NULL PRIMARY KEY,
  alive_until BIGINT NOT NULL
);

-- Positions of loose sends.
CREATE TABLE counter (
  name TEXT   NOT NULL PRIMARY KEY,
  next BIGINT NOT NULL
);
INSERT INTO counter (name, next) VALUES ('send_pos', 1);

-- Where this ledger lives, to notice that it was copied, restored or failed over.
CREATE TABLE home (
  one      SMALLINT NOT NULL PRIMARY KEY CHECK (one = 1),
  place    TEXT     NOT NULL, -- which database this is, as far as one can see from outside of it
  timeline BIGINT   NOT NULL,
  held     SMALLINT NOT NULL DEFAULT 0 CHECK (held IN (0, 1)),
  held_at  BIGINT,
  rewound  SMALLINT NOT NULL DEFAULT 0 CHECK (rewound IN (0, 1)), -- held because claims were lost
  durable  SMALLINT NOT NULL DEFAULT 0 CHECK (durable IN (0, 1))  -- a failover loses nothing, when it was last looked at
);
INSERT INTO home (one, place, timeline) VALUES (1, '', 0);

-- +goose Down

DROP TABLE home;
DROP TABLE counter;
DROP TABLE replica;
DROP TABLE gap;
DROP TABLE send;
DROP TABLE tally;
DROP TABLE queue;
DROP TABLE share;
DROP TABLE company;
