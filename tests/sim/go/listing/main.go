// Lists the hosts of a vCenter and the machines on each, and prints them as one line of JSON.
//
// The server is named by GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD and GOVC_TLS_KNOWN_HOSTS.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
)

type seen struct {
	// Machines by the name of their host, as the machines say and as the hosts say.
	ByMachine map[string][]string `json:"byMachine"`
	ByHost    map[string]int      `json:"byHost"`
	// Thumbprints of the hosts.
	Thumbprints map[string]string `json:"thumbprints"`
	// Inventory paths of machines, as the finder walks the folders.
	Paths []string `json:"paths"`
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out := seen{ByMachine: map[string][]string{}, ByHost: map[string]int{}, Thumbprints: map[string]string{}}
	if err := list(ctx, &out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(1)
	}
}

func login(ctx context.Context) (*govmomi.Client, error) {
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
	return c, c.Login(ctx, url.UserPassword(os.Getenv("GOVC_USERNAME"), os.Getenv("GOVC_PASSWORD")))
}

func list(ctx context.Context, out *seen) error {
	c, err := login(ctx)
	if err != nil {
		return err
	}
	finder := find.NewFinder(c.Client, true)
	center, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return err
	}
	finder.SetDatacenter(center)
	hosts, err := finder.HostSystemList(ctx, "*/*")
	if err != nil {
		return err
	}
	names := map[string]string{}
	collector := property.DefaultCollector(c.Client)
	for _, one := range hosts {
		var host mo.HostSystem
		if err = collector.RetrieveOne(ctx, one.Reference(), []string{"name", "vm", "summary.config"}, &host); err != nil {
			return err
		}
		names[one.Reference().Value] = host.Name
		out.ByHost[host.Name] = len(host.Vm)
		out.Thumbprints[host.Name] = host.Summary.Config.SslThumbprint
	}
	views, err := view.NewManager(c.Client).CreateContainerView(
		ctx, c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return err
	}
	var machines []mo.VirtualMachine
	if err = views.Retrieve(ctx, []string{"VirtualMachine"}, []string{"name", "runtime.host"}, &machines); err != nil {
		return err
	}
	for _, one := range machines {
		host := names[one.Runtime.Host.Value]
		out.ByMachine[host] = append(out.ByMachine[host], one.Name)
	}
	found, err := finder.VirtualMachineList(ctx, "/Datacenter/vm/...")
	if err != nil {
		return err
	}
	for _, one := range found {
		out.Paths = append(out.Paths, one.InventoryPath)
	}
	return c.Logout(ctx)
}
