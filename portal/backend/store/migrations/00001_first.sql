-- +goose Up
-- Times are microseconds since 1970, hashes SHA-256. What a browser or a portal
-- holds (tokens, codes, devices) is here as its hash only.

-- People who logged in, by their name in the directory. totp_secret is sealed with
-- AES-256-GCM (auth/totp); next_secret is one that waits for its first code.
-- totp_step is the last time step that was spent.
CREATE TABLE users (
	name TEXT PRIMARY KEY,
	uid BIGINT NOT NULL,
	gid BIGINT NOT NULL,
	home TEXT NOT NULL,
	full_name TEXT NOT NULL,
	mail TEXT NOT NULL,
	roles TEXT NOT NULL,
	groups_of TEXT NOT NULL,
	stamp TEXT NOT NULL,
	totp_secret BLOB,
	totp_step BIGINT NOT NULL DEFAULT 0,
	totp_since BIGINT NOT NULL DEFAULT 0,
	next_secret BLOB,
	next_until BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE recovery_codes (
	user_name TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
	hash TEXT NOT NULL,
	PRIMARY KEY (user_name, hash)
);

CREATE TABLE login_sessions (
	id TEXT PRIMARY KEY,
	hash TEXT NOT NULL UNIQUE,
	user_name TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
	state TEXT NOT NULL,
	created BIGINT NOT NULL,
	seen BIGINT NOT NULL,
	expires BIGINT NOT NULL,
	source TEXT NOT NULL,
	agent TEXT NOT NULL,
	device TEXT NOT NULL,
	portal TEXT NOT NULL
);
CREATE INDEX login_sessions_user ON login_sessions (user_name);

-- Browsers that their owner has logged in with fully. factor_at is when a second
-- factor was last shown there.
CREATE TABLE devices (
	hash TEXT PRIMARY KEY,
	user_name TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
	factor_at BIGINT NOT NULL,
	expires BIGINT NOT NULL
);

-- Attempts by who or where they come from. An attempt counts before it is looked
-- at, so that guesses at once do not all pass.
CREATE TABLE attempts (
	subject TEXT PRIMARY KEY,
	failures BIGINT NOT NULL,
	next_at BIGINT NOT NULL,
	updated BIGINT NOT NULL
);

-- What a user asked to be submitted, stored before it is sent. state is sending,
-- unknown, job or failed; final is the job as it was last seen, in JSON.
CREATE TABLE intents (
	id TEXT PRIMARY KEY,
	user_name TEXT NOT NULL,
	uid BIGINT NOT NULL,
	body TEXT NOT NULL,
	state TEXT NOT NULL,
	job BIGINT NOT NULL DEFAULT 0,
	problem TEXT NOT NULL DEFAULT '',
	created BIGINT NOT NULL,
	updated BIGINT NOT NULL,
	final TEXT NOT NULL DEFAULT ''
);
CREATE INDEX intents_user ON intents (user_name, created);
CREATE INDEX intents_job ON intents (job);

CREATE TABLE job_events (
	job BIGINT NOT NULL,
	at BIGINT NOT NULL,
	stage TEXT NOT NULL,
	text TEXT NOT NULL
);
CREATE INDEX job_events_job ON job_events (job, at);

-- Origins of sessions: one label per job instance, viewer and mode.
CREATE TABLE hosts (
	label TEXT PRIMARY KEY,
	job BIGINT NOT NULL,
	instance TEXT NOT NULL,
	uid BIGINT NOT NULL,
	viewer TEXT NOT NULL,
	mode TEXT NOT NULL,
	app TEXT NOT NULL,
	node TEXT NOT NULL,
	created BIGINT NOT NULL,
	ended BIGINT NOT NULL DEFAULT 0,
	UNIQUE (instance, viewer, mode)
);
CREATE INDEX hosts_job ON hosts (job);

CREATE TABLE open_codes (
	hash TEXT PRIMARY KEY,
	label TEXT NOT NULL,
	session_id TEXT NOT NULL REFERENCES login_sessions (id) ON DELETE CASCADE,
	nonce TEXT NOT NULL,
	expires BIGINT NOT NULL
);

CREATE TABLE app_tokens (
	hash TEXT PRIMARY KEY,
	label TEXT NOT NULL,
	session_id TEXT NOT NULL REFERENCES login_sessions (id) ON DELETE CASCADE,
	expires BIGINT NOT NULL
);

CREATE TABLE revocations (
	seq BIGINT PRIMARY KEY,
	kind TEXT NOT NULL,
	value TEXT NOT NULL,
	at BIGINT NOT NULL
);

CREATE TABLE join_tokens (
	hash TEXT PRIMARY KEY,
	role TEXT NOT NULL,
	name TEXT NOT NULL,
	expires BIGINT NOT NULL
);

-- A coarse copy of the measurements, for jobs that have ended.
CREATE TABLE samples (
	job BIGINT NOT NULL,
	node TEXT NOT NULL,
	name TEXT NOT NULL,
	device TEXT NOT NULL,
	at BIGINT NOT NULL,
	value DOUBLE PRECISION NOT NULL
);
CREATE INDEX samples_job ON samples (job, at);

-- Who did what. Each row holds the hash of the one before, and none can change.
CREATE TABLE audit (
	seq BIGINT PRIMARY KEY,
	at BIGINT NOT NULL,
	actor TEXT NOT NULL,
	act TEXT NOT NULL,
	object TEXT NOT NULL,
	detail TEXT NOT NULL,
	hash TEXT NOT NULL
);

-- +goose StatementBegin
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
-- +goose StatementEnd
