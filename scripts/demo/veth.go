package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/nl/netns"
)

// connectPair joins this network namespace and the container's by a veth
// pair and gives both sides their addresses, without a program to do it.
func connectPair(container *netns.NS) error {
	if err := rtnetlink(unix.RTM_NEWLINK, netlink.Create|netlink.Excl, make([]byte, unix.SizeofIfInfomsg), func(e *netlink.AttributeEncoder) {
		e.String(unix.IFLA_IFNAME, "world")
		e.Nested(unix.IFLA_LINKINFO, func(e *netlink.AttributeEncoder) error {
			e.String(unix.IFLA_INFO_KIND, "veth")
			e.Nested(unix.IFLA_INFO_DATA, func(e *netlink.AttributeEncoder) error {
				e.Do(1, func() ([]byte, error) { // VETH_INFO_PEER: a link message of its own
					peer := netlink.NewAttributeEncoder()
					peer.String(unix.IFLA_IFNAME, "eth0")
					peer.Uint32(unix.IFLA_NET_NS_FD, uint32(container.File().Fd()))
					attrs, err := peer.Encode()
					return append(make([]byte, unix.SizeofIfInfomsg), attrs...), err
				})
				return nil
			})
			return nil
		})
	}); err != nil {
		return fmt.Errorf("veth pair: %w", err)
	}
	if err := configure("world", worldAddr, listedAddr); err != nil {
		return err
	}
	return container.Do(func() error {
		if err := netns.LoopbackUp(); err != nil {
			return err
		}
		if err := configure("eth0", containerAddr); err != nil {
			return err
		}
		route := make([]byte, unix.SizeofRtMsg)
		route[0], route[4], route[5], route[7] = unix.AF_INET, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RTN_UNICAST
		return rtnetlink(unix.RTM_NEWROUTE, netlink.Create, route, func(e *netlink.AttributeEncoder) {
			gateway := netip.MustParseAddr(worldAddr).As4()
			e.Bytes(unix.RTA_GATEWAY, gateway[:])
		})
	})
}

// configure gives a link its addresses, /24 each, and brings it up.
func configure(link string, addrs ...string) error {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	for _, s := range addrs {
		a := netip.MustParseAddr(s).As4()
		msg := make([]byte, unix.SizeofIfAddrmsg)
		msg[0], msg[1] = unix.AF_INET, 24
		putUint32(msg[4:], uint32(i.Index))
		if err := rtnetlink(unix.RTM_NEWADDR, netlink.Create|netlink.Excl, msg, func(e *netlink.AttributeEncoder) {
			e.Bytes(unix.IFA_LOCAL, a[:])
			e.Bytes(unix.IFA_ADDRESS, a[:])
		}); err != nil {
			return fmt.Errorf("address %s: %w", s, err)
		}
	}
	msg := make([]byte, unix.SizeofIfInfomsg)
	putUint32(msg[4:], uint32(i.Index))
	putUint32(msg[8:], unix.IFF_UP)
	putUint32(msg[12:], unix.IFF_UP)
	return rtnetlink(unix.RTM_NEWLINK, 0, msg, func(*netlink.AttributeEncoder) {})
}

// rtnetlink sends one request from the calling thread's namespace and waits
// for its acknowledgement.
func rtnetlink(typ uint16, flags netlink.HeaderFlags, header []byte, attrs func(*netlink.AttributeEncoder)) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	e := netlink.NewAttributeEncoder()
	attrs(e)
	data, err := e.Encode()
	if err != nil {
		return err
	}
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(header, data...),
	})
	return err
}

func putUint32(b []byte, v uint32) { binary.NativeEndian.PutUint32(b, v) }
