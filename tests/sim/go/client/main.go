// Uses a host as any govmomi program would, and prints what it saw as one line of JSON.
//
// The host is named by GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD and GOVC_TLS_KNOWN_HOSTS; the machine by -vm. The
// certificate is verified by its thumbprint. The machine must be powered off and its change tracking on.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"../host"
)

type disk struct {
	Key      int32  `json:"key"`
	File     string `json:"file"`
	Capacity int64  `json:"capacity"`
	ChangeID string `json:"changeId"`
}

type seen struct {
	API       string          `json:"api"`
	Path      string          `json:"path"`
	Paths     []string        `json:"paths"`
	Names     []string        `json:"names"`
	Disks     []disk          `json:"disks"`
	Snapshot  string          `json:"snapshot"`
	Current   string          `json:"current"`
	Areas     [][2]int64      `json:"areas"`
	Length    int64           `json:"length"`
	Powers    []string        `json:"powers"`
	After     bool            `json:"snapshotAfter"`
	Uploaded  bool            `json:"uploaded"`
	ByUUID    bool            `json:"byUuid"`
	Datastore string          `json:"datastore"`
	Faults    map[string]bool `json:"faults"`
}

func main() {
	name := flag.String("vm", "vm1", "the machine")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out := seen{Faults: map[string]bool{}}
	if err := use(ctx, *name, &out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(1)
	}
}

func use(ctx context.Context, name string, out *seen) error {
	_, err := host.LoginWith(ctx, "not the password")
	out.Faults["login"] = soap.IsSoapFault(err)
	c, err := host.Login(ctx)
	if err != nil {
		return err
	}
	out.API = c.ServiceContent.About.ApiVersion
	vm, err := look(ctx, c, name, out)
	if err != nil {
		return fmt.Errorf("look: %w", err)
	}
	if err = power(ctx, vm, out); err != nil {
		return fmt.Errorf("power: %w", err)
	}
	if err = snapshot(ctx, c, vm, out); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err = files(ctx, c, out); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	if err = c.Logout(ctx); err != nil {
		return fmt.Errorf("logout: %w", err)
	}
	_, err = methods.GetCurrentTime(ctx, c)
	out.Faults["afterLogout"] = soap.IsSoapFault(err)
	return nil
}

func look(ctx context.Context, c *govmomi.Client, name string, out *seen) (*object.VirtualMachine, error) {
	finder := find.NewFinder(c.Client, true)
	center, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return nil, err
	}
	finder.SetDatacenter(center)
	vm, err := finder.VirtualMachine(ctx, name)
	if err != nil {
		return nil, err
	}
	out.Path = vm.InventoryPath
	all, err := finder.ManagedObjectListChildren(ctx, "/...")
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		out.Paths = append(out.Paths, one.Path)
	}
	store, err := finder.DefaultDatastore(ctx)
	if err != nil {
		return nil, err
	}
	out.Datastore = store.Name()

	views, err := view.NewManager(c.Client).CreateContainerView(
		ctx, c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, err
	}
	var machines []mo.VirtualMachine
	if err = views.Retrieve(ctx, []string{"VirtualMachine"}, []string{"name", "config.uuid"}, &machines); err != nil {
		return nil, err
	}
	for _, one := range machines {
		out.Names = append(out.Names, one.Name)
		found, err := object.NewSearchIndex(c.Client).FindByUuid(ctx, nil, one.Config.Uuid, true, nil)
		if err != nil {
			return nil, err
		}
		out.ByUUID = found != nil && found.Reference() == one.Self
	}
	if err = views.Destroy(ctx); err != nil {
		return nil, err
	}
	devices, err := vm.Device(ctx)
	if err != nil {
		return nil, err
	}
	for _, one := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		d := one.(*types.VirtualDisk)
		b := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		out.Disks = append(out.Disks, disk{d.Key, b.FileName, d.CapacityInBytes, b.ChangeId})
	}
	return vm, nil
}

func power(ctx context.Context, vm *object.VirtualMachine, out *seen) error {
	for _, act := range []func(context.Context) (*object.Task, error){vm.PowerOn, vm.PowerOff, vm.PowerOn} {
		task, err := act(ctx)
		if err != nil {
			return err
		}
		if err = task.Wait(ctx); err != nil {
			return err
		}
		state, err := vm.PowerState(ctx)
		if err != nil {
			return err
		}
		out.Powers = append(out.Powers, string(state))
	}
	task, err := vm.PowerOn(ctx)
	if err != nil {
		return err
	}
	out.Faults["powerOnTwice"] = task.Wait(ctx) != nil
	return nil
}

func snapshot(ctx context.Context, c *govmomi.Client, vm *object.VirtualMachine, out *seen) error {
	task, err := vm.CreateSnapshot(ctx, "from go", "<made> & \"seen\"", false, false)
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	made := info.Result.(types.ManagedObjectReference)
	out.Snapshot = made.Type
	var props mo.VirtualMachine
	collector := property.DefaultCollector(c.Client)
	if err = collector.RetrieveOne(ctx, vm.Reference(), []string{"snapshot"}, &props); err != nil {
		return err
	}
	out.Current = props.Snapshot.RootSnapshotList[0].Description
	if *props.Snapshot.CurrentSnapshot != made {
		return fmt.Errorf("current snapshot is %s", props.Snapshot.CurrentSnapshot)
	}
	for offset := int64(0); offset < out.Disks[0].Capacity; {
		res, err := methods.QueryChangedDiskAreas(ctx, c, &types.QueryChangedDiskAreas{
			This: vm.Reference(), Snapshot: &made, DeviceKey: out.Disks[0].Key, StartOffset: offset, ChangeId: "*",
		})
		if err != nil {
			return err
		}
		for _, area := range res.Returnval.ChangedArea {
			out.Areas = append(out.Areas, [2]int64{area.Start, area.Length})
		}
		offset = res.Returnval.StartOffset + res.Returnval.Length
		out.Length = offset
	}
	remove, err := vm.RemoveSnapshot(ctx, "from go", false, types.NewBool(true))
	if err != nil {
		return err
	}
	if err = remove.Wait(ctx); err != nil {
		return err
	}
	var after mo.VirtualMachine
	if err = collector.RetrieveOne(ctx, vm.Reference(), []string{"snapshot"}, &after); err != nil {
		return err
	}
	out.After = after.Snapshot != nil
	return nil
}

func files(ctx context.Context, c *govmomi.Client, out *seen) error {
	finder := find.NewFinder(c.Client, true)
	center, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return err
	}
	finder.SetDatacenter(center)
	store, err := finder.DefaultDatastore(ctx)
	if err != nil {
		return err
	}
	text := strings.Repeat("bytes over /folder\n", 10000)
	// Without a length govmomi sends the body in chunks.
	if err = store.Upload(ctx, io.MultiReader(strings.NewReader(text)), "note.txt", &soap.Upload{
		Method: "PUT", Type: "application/octet-stream", ContentLength: -1}); err != nil {
		return err
	}
	reader, _, err := store.Download(ctx, "note.txt", &soap.DefaultDownload)
	if err != nil {
		return err
	}
	defer reader.Close()
	back, err := io.ReadAll(reader)
	out.Uploaded = bytes.Equal(back, []byte(text))
	return err
}
