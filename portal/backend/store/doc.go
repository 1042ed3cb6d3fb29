// Package store is the backend's memory: one SQLite file, opened by exactly one
// process, with its schema as migrations. The SQL is plain enough for
// PostgreSQL: text for UUIDs, whole numbers for microseconds since 1970, no
// functions of one database. The tables' meanings are in the migrations.
package store
