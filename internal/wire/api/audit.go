package api

import "time"

// AuditRecord is one act, of the list that GET /v1/audit answers with.
type AuditRecord struct {
	Seq    int64             `json:"seq"`
	Time   time.Time         `json:"time"`
	Actor  string            `json:"actor"` // a user, portal/NAME, node/NAME, local uid N
	Act    string            `json:"act"`
	Object string            `json:"object"`
	Detail map[string]string `json:"detail,omitempty"`
	Hash   string            `json:"hash"`
}

// AuditVerified is the answer to GET /v1/audit/verify.
type AuditVerified struct {
	OK      bool   `json:"ok"`
	Records int64  `json:"records"`
	Hash    string `json:"hash"`
	Problem string `json:"problem,omitempty"`
}
