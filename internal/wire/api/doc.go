// Package api has the requests and answers of the backend's REST API, version
// 1, as JSON. The portal, the agents and the carme command speak it; what each
// path means is in portal/backend/api/openapi.yaml.
package api
