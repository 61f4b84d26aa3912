-- +goose Up

-- The span of the call that made the send, as W3C Trace Context writes it, where that call is traced: the attempt is linked
-- to it, whenever and by whomever it is made.
ALTER TABLE send ADD COLUMN traceparent TEXT;

-- +goose Down

ALTER TABLE send DROP COLUMN traceparent;
