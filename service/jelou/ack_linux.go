package jelou

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// established is the kernel's TCP_ESTABLISHED.
const established = 1

// readTCP asks the kernel. It is false when the connection has ended.
func readTCP(c *net.TCPConn) (tcpState, bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return tcpState{}, false
	}
	var info *unix.TCPInfo
	var failed error
	if err := raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil || failed != nil {
		return tcpState{}, false
	}
	if info.State != established {
		return tcpState{}, false // a reset connection has nothing to acknowledge either
	}
	return tcpState{
		acknowledged: info.Unacked == 0 && info.Notsent_bytes == 0,
		fastest:      time.Duration(info.Min_rtt) * time.Microsecond,
	}, true
}
