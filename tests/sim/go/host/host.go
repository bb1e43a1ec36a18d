// Package host logs the tests' programs in, as any govmomi program would.
package host

import (
	"context"
	"net/url"
	"os"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
)

// Login goes to the host that GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD and GOVC_TLS_KNOWN_HOSTS name; the certificate
// is verified by its thumbprint.
func Login(ctx context.Context) (*govmomi.Client, error) {
	return LoginWith(ctx, os.Getenv("GOVC_PASSWORD"))
}

// LoginWith does so with another password.
func LoginWith(ctx context.Context, password string) (*govmomi.Client, error) {
	u, err := soap.ParseURL(os.Getenv("GOVC_URL"))
	if err != nil {
		return nil, err
	}
	transport := soap.NewClient(u, false)
	if err = transport.LoadThumbprints(os.Getenv("GOVC_TLS_KNOWN_HOSTS")); err != nil {
		return nil, err
	}
	client, err := vim25.NewClient(ctx, transport)
	if err != nil {
		return nil, err
	}
	c := &govmomi.Client{Client: client, SessionManager: session.NewManager(client)}
	return c, c.Login(ctx, url.UserPassword(os.Getenv("GOVC_USERNAME"), password))
}
