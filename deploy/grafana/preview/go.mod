// So that ./... of the module around does not go into node_modules, where some packages have Go files.
module github.com/jelou-facade/jelou-facade/deploy/grafana/preview

go 1.26.0
