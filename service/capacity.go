package service

import (
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

type capacityServer struct {
	facadev1.UnimplementedCapacityServiceServer
	*core
}
