// Clones a machine, makes templates and first-class disks as any govmomi program would, and prints what it saw as
// one line of JSON.
//
// The host is a vCenter, named by GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD and GOVC_TLS_KNOWN_HOSTS; the machine, which
// is off and has one snapshot called "base", by -vm. The certificate is verified by its thumbprint.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vslm"

	"../host"
)

type seen struct {
	Parents    []string `json:"parents"`
	Full       int      `json:"fullParents"`
	Template   bool     `json:"template"`
	TemplateVM string   `json:"templateFile"`
	Pool       bool     `json:"templatePool"`
	PowerOn    bool     `json:"templatePowersOn"`
	Back       bool     `json:"machineAgain"`
	Disk       string   `json:"disk"`
	Size       int64    `json:"size"`
	Listed     []string `json:"listed"`
	Consumers  []string `json:"consumers"`
	ByFile     bool     `json:"byFile"`
	Gone       bool     `json:"gone"`
}

func main() {
	name := flag.String("vm", "vm1", "the machine")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out := seen{}
	if err := use(ctx, *name, &out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(1)
	}
}

func use(ctx context.Context, name string, out *seen) error {
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
	vm, err := finder.VirtualMachine(ctx, name)
	if err != nil {
		return err
	}
	pool, err := finder.DefaultResourcePool(ctx)
	if err != nil {
		return err
	}
	if err = clones(ctx, c, center, vm, pool, out); err != nil {
		return fmt.Errorf("clones: %w", err)
	}
	store, err := finder.DefaultDatastore(ctx)
	if err != nil {
		return err
	}
	if err = disks(ctx, c, vm, store, out); err != nil {
		return fmt.Errorf("disks: %w", err)
	}
	return c.Logout(ctx)
}

func clone(ctx context.Context, center *object.Datacenter, vm *object.VirtualMachine, name string,
	spec types.VirtualMachineCloneSpec) (*object.VirtualMachine, error) {
	folders, err := center.Folders(ctx)
	if err != nil {
		return nil, err
	}
	task, err := vm.Clone(ctx, folders.VmFolder, name, spec)
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return nil, err
	}
	return object.NewVirtualMachine(vm.Client(), info.Result.(types.ManagedObjectReference)), nil
}

func chain(ctx context.Context, vm *object.VirtualMachine) ([]string, error) {
	devices, err := vm.Device(ctx)
	if err != nil {
		return nil, err
	}
	var parents []string
	for _, device := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		backing := device.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		for at := backing.Parent; at != nil; at = at.Parent {
			parents = append(parents, at.FileName)
		}
	}
	return parents, nil
}

func clones(ctx context.Context, c *govmomi.Client, center *object.Datacenter, vm *object.VirtualMachine,
	pool *object.ResourcePool, out *seen) error {
	snapshot, err := vm.FindSnapshot(ctx, "base")
	if err != nil {
		return err
	}
	ref := pool.Reference()
	spec := types.VirtualMachineCloneSpec{
		Location: types.VirtualMachineRelocateSpec{
			Pool:         &ref,
			DiskMoveType: string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking),
		},
		Snapshot: snapshot,
	}
	linked, err := clone(ctx, center, vm, "linked", spec)
	if err != nil {
		return err
	}
	if out.Parents, err = chain(ctx, linked); err != nil {
		return err
	}
	spec.Location.DiskMoveType = ""
	full, err := clone(ctx, center, vm, "full", spec)
	if err != nil {
		return err
	}
	parents, err := chain(ctx, full)
	if err != nil {
		return err
	}
	out.Full = len(parents)
	if err = full.MarkAsTemplate(ctx); err != nil {
		return err
	}
	var seen mo.VirtualMachine
	if err = full.Properties(ctx, full.Reference(), []string{"config", "resourcePool"}, &seen); err != nil {
		return err
	}
	out.Template, out.TemplateVM, out.Pool = seen.Config.Template, seen.Config.Files.VmPathName, seen.ResourcePool != nil
	task, err := full.PowerOn(ctx)
	out.PowerOn = err == nil && task.Wait(ctx) == nil
	if err = full.MarkAsVirtualMachine(ctx, *pool, nil); err != nil {
		return err
	}
	found, err := object.NewSearchIndex(c.Client).FindByDatastorePath(ctx, center, "[datastore1] full/full.vmx")
	if err != nil {
		return err
	}
	out.ByFile = found != nil && found.Reference() == full.Reference()
	if err = full.Properties(ctx, full.Reference(), []string{"config"}, &seen); err != nil {
		return err
	}
	out.Back = !seen.Config.Template
	return nil
}

func disks(ctx context.Context, c *govmomi.Client, vm *object.VirtualMachine, store *object.Datastore, out *seen) error {
	manager := vslm.NewObjectManager(c.Client)
	task, err := manager.CreateDisk(ctx, types.VslmCreateSpec{
		Name:         "data",
		CapacityInMB: 8,
		BackingSpec: &types.VslmCreateSpecDiskFileBackingSpec{
			VslmCreateSpecBackingSpec: types.VslmCreateSpecBackingSpec{Datastore: store.Reference()},
			ProvisioningType:          string(types.BaseConfigInfoDiskFileBackingInfoProvisioningTypeThin),
		},
	})
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	made := info.Result.(types.VStorageObject)
	id := made.Config.Id.Id
	out.Disk = made.Config.Backing.(*types.BaseConfigInfoDiskFileBackingInfo).FilePath
	out.Size = made.Config.CapacityInMB
	ids, err := manager.List(ctx, store)
	if err != nil {
		return err
	}
	for _, one := range ids {
		if one.Id == id {
			out.Listed = append(out.Listed, "made")
		} else {
			out.Listed = append(out.Listed, one.Id)
		}
	}
	if err = vm.AttachDisk(ctx, id, store, 0, 5); err != nil {
		return err
	}
	known, err := manager.Retrieve(ctx, store, id)
	if err != nil {
		return err
	}
	for _, one := range known.Config.ConsumerId {
		out.Consumers = append(out.Consumers, one.Id)
	}
	if err = vm.DetachDisk(ctx, id); err != nil {
		return err
	}
	if task, err = manager.Delete(ctx, store, id); err != nil {
		return err
	}
	if err = task.Wait(ctx); err != nil {
		return err
	}
	_, err = manager.Retrieve(ctx, store, id)
	out.Gone = soap.IsSoapFault(err)
	return nil
}
