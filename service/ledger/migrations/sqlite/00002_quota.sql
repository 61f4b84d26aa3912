-- +goose Up

-- How many sends of a caller a company has accepted on a day, for callers who have a limit.
CREATE TABLE quota (
  company BIGINT NOT NULL,
  caller  TEXT   NOT NULL,
  day     BIGINT NOT NULL, -- since 1970-01-01, in UTC
  used    BIGINT NOT NULL,
  PRIMARY KEY (company, caller),
  CHECK (used >= 0)
);

-- +goose Down

DROP TABLE quota;
