module kiln.invalid/k3s-config

go 1.24.4

require (
	gopkg.in/yaml.v2 v2.4.0
	gopkg.in/yaml.v3 v3.0.1
)
