package setup

// The configuration as `carme setup` writes it: what the options say, and
// nothing that the daemons' defaults say already. Their manuals have the rest.

const backendTemplate = `# carme-backend, written by carme setup. Manual: carme-backend(8).
cluster: {{.Cluster}}
# This host as portals and nodes reach it; it is in the backend's certificate.
name: {{.BackendName}}
{{- if ne .BackendPort "` + backendPort + `"}}
listen: ":{{.BackendPort}}"
{{- end}}
ldap:
  # ldap:// is used with StartTLS alone.
  urls: [{{quote .Directory.URL}}]
{{- with .Directory.CA}}
  ca: {{.}}
{{- end}}
{{- with .Directory.BindDN}}
  bind_dn: {{quote .}}
{{- end}}
{{- with .Directory.PasswordFile}}
  password_file: {{.}}
{{- end}}
  people:
    base: {{quote .Directory.PeopleBase}}
  groups:
    base: {{quote .Directory.GroupsBase}}
  login_groups: [{{quote .Directory.LoginGroup}}]
{{- with .Directory.AdminGroup}}
  admin_groups: [{{quote .}}]
{{- end}}
slurm:
  url: {{.Slurmrestd}}
`

const signerTemplate = `# carme-signer, written by carme setup. Manual: carme-backend(8).
# It holds the key that signs Slurm's tokens, which is as good as root on the
# cluster, and the CA of Carme's own certificates.
{{- if .SlurmKey}}
slurm_key: {{.SlurmKey}}
key_id: {{.SlurmKeyID}}
{{- end}}
# Only members of these groups get tokens, whatever the backend asks for.
member_of: [{{quote .Directory.LoginGroup}}]
`

const portalTemplate = `# carme-portal, written by carme setup. Manual: carme-portal(8).
# Where systemd listens, ` + socketFile + ` says.
listen: ":{{.PublicPort}}"
portal_host: {{.PortalHost}}
# Each session has a name of its own below this one; DNS needs *.{{.AppsDomain}}.
apps_domain: {{.AppsDomain}}
public_port: {{.PublicPort}}
# What browsers are shown; read again when the files change.
tls:
  cert: ` + webCertFile + `
  key: ` + webKeyFile + `
backend:
  url: https://{{.BackendAddress}}
  name: {{.BackendName}}
  cert: ` + portalDir + `/tls/cert.pem
  key: ` + portalDir + `/tls/key.pem
  ca: ` + portalDir + `/tls/ca.pem
`

const agentTemplate = `# carme-agent, written by carme setup. Manual: carme-agent(8).
cluster: {{.Cluster}}
backend:
  address: {{.Backend}}
  name: {{.BackendName}}
`

// systemd holds the portal's listening socket, and it reads no YAML.
const socketTemplate = `# Written by carme setup: where browsers come in, as listen of portal.yaml.
[Socket]
ListenStream=
ListenStream={{.PublicPort}}
`
