// Lists the hosts of a vCenter and the machines on each, and prints them as one line of JSON.
//
// The server is named by GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD and GOVC_TLS_KNOWN_HOSTS.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"

	"../host"
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

func list(ctx context.Context, out *seen) error {
	c, err := host.Login(ctx)
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
		var found mo.HostSystem
		if err = collector.RetrieveOne(ctx, one.Reference(), []string{"name", "vm", "summary.config"}, &found); err != nil {
			return err
		}
		names[one.Reference().Value] = found.Name
		out.ByHost[found.Name] = len(found.Vm)
		out.Thumbprints[found.Name] = found.Summary.Config.SslThumbprint
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
