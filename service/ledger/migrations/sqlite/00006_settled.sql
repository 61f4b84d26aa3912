-- +goose Up

ALTER TABLE queue ADD COLUMN settled_at BIGINT; -- when an ended batch had its latest result, which may be that of an unknown item

-- +goose Down

ALTER TABLE queue DROP COLUMN settled_at;
