package varlink

import (
	"context"
	"maps"
	"slices"
)

// service is the interface that every server has.
const service = "org.varlink.service"

const serviceDescription = `# What a varlink server tells about itself.
interface org.varlink.service

# The server, and the interfaces that it has.
method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

# The text that describes an interface.
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
`

// Info is what a server tells about itself.
type Info struct {
	Vendor  string
	Product string
	Version string
	URL     string
}

type (
	info struct {
		Vendor     string   `json:"vendor"`
		Product    string   `json:"product"`
		Version    string   `json:"version"`
		URL        string   `json:"url"`
		Interfaces []string `json:"interfaces"`
	}
	interfaceName struct {
		Interface string `json:"interface"`
	}
	description struct {
		Description string `json:"description"`
	}
	interfaceNotFound struct {
		Interface string `json:"interface"`
	}
	methodNotFound struct {
		Method string `json:"method"`
	}
	invalidParameter struct {
		Parameter string `json:"parameter"`
	}
)

func (s *Server) service() Interface {
	return Interface{
		Name:        service,
		Description: serviceDescription,
		Methods: []Method{
			Handle("GetInfo", func(context.Context, *Call, struct{}) (info, error) {
				i := s.Info
				return info{i.Vendor, i.Product, i.Version, i.URL, slices.Sorted(maps.Keys(s.interfaces))}, nil
			}),
			Handle("GetInterfaceDescription", func(_ context.Context, _ *Call, in interfaceName) (description, error) {
				i, ok := s.interfaces[in.Interface]
				if !ok {
					return description{}, NewError(InterfaceNotFound, interfaceNotFound(in))
				}
				return description{i.Description}, nil
			}),
		},
		Errors: map[string]any{
			"InterfaceNotFound":    interfaceNotFound{},
			"MethodNotFound":       methodNotFound{},
			"MethodNotImplemented": methodNotFound{},
			"InvalidParameter":     invalidParameter{},
			"PermissionDenied":     struct{}{},
			"ExpectedMore":         struct{}{},
		},
	}
}
