package fakeguest

import "net"

// apiServer serves the agent's HTTP API.
type apiServer struct{}

func newAPIServer(*Guest) *apiServer { return &apiServer{} }

func (*apiServer) accept(net.Conn) bool { return false }

func (*apiServer) close() {}
