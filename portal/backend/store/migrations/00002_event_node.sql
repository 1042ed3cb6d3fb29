-- The node that an event tells of: clients say events in their own words.
-- +goose Up
ALTER TABLE job_events ADD COLUMN node TEXT NOT NULL DEFAULT '';
