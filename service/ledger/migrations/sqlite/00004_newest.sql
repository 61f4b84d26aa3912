-- +goose Up

-- What PostgreSQL has here for old versions of rows is not needed: a row is written over in its place.
ALTER TABLE company ADD COLUMN era BIGINT NOT NULL DEFAULT 0; -- grows once in 64 claims

-- +goose Down

ALTER TABLE company DROP COLUMN era;
