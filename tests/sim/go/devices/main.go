// Reads the devices of a machine as any govmomi program would, adds controllers with disks as govc does, and
// prints what it saw as one line of JSON.
//
// The host is named by GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD and GOVC_TLS_KNOWN_HOSTS; the machine by -vm.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"../host"
)

type disk struct {
	Key        int32  `json:"key"`
	Name       string `json:"name"`
	Controller string `json:"controller"`
	Bus        int32  `json:"bus"`
	Shared     string `json:"shared"`
	Unit       int32  `json:"unit"`
	Backing    string `json:"backing"`
	Mode       string `json:"mode"`
	Sharing    string `json:"sharing"`
	Mapping    string `json:"mapping"`
	KeyID      string `json:"keyId"`
	ChangeID   string `json:"changeId"`
}

type seen struct {
	Before []disk   `json:"before"`
	After  []disk   `json:"after"`
	Added  []string `json:"added"`
	Stores []string `json:"stores"`
}

func main() {
	name := flag.String("vm", "zoo", "the machine")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out seen
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
	defer c.Logout(ctx)
	finder := find.NewFinder(c.Client, true)
	center, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return err
	}
	finder.SetDatacenter(center)
	stores, err := finder.DatastoreList(ctx, "*")
	if err != nil {
		return err
	}
	for _, one := range stores {
		var facts mo.Datastore
		if err = one.Properties(ctx, one.Reference(), []string{"summary"}, &facts); err != nil {
			return err
		}
		out.Stores = append(out.Stores, facts.Summary.Name+" "+facts.Summary.Type)
	}
	vm, err := finder.VirtualMachine(ctx, name)
	if err != nil {
		return err
	}
	if out.Before, err = disks(ctx, vm); err != nil {
		return err
	}
	if err = add(ctx, vm, out); err != nil {
		return fmt.Errorf("add: %w", err)
	}
	out.After, err = disks(ctx, vm)
	return err
}

// add makes a controller of each kind with govmomi's own helpers, and a disk on it.
func add(ctx context.Context, vm *object.VirtualMachine, out *seen) error {
	for _, kind := range []string{"nvme", "sata", "lsilogic-sas"} {
		devices, err := vm.Device(ctx)
		if err != nil {
			return err
		}
		var controller types.BaseVirtualDevice
		switch kind {
		case "nvme":
			controller, err = devices.CreateNVMEController()
		case "sata":
			controller = &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{
				VirtualController: types.VirtualController{
					BusNumber: 1, VirtualDevice: types.VirtualDevice{Key: devices.NewKey()}}}}
		default:
			controller, err = devices.CreateSCSIController(kind)
		}
		if err != nil {
			return err
		}
		if err = vm.AddDevice(ctx, controller); err != nil {
			return fmt.Errorf("%s controller: %w", kind, err)
		}
		if devices, err = vm.Device(ctx); err != nil {
			return err
		}
		on, err := newest(devices, controller)
		if err != nil {
			return err
		}
		fresh := devices.CreateDisk(on, types.ManagedObjectReference{}, "")
		backing := fresh.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		backing.Datastore = nil
		fresh.CapacityInKB = 1024
		if err = vm.AddDevice(ctx, fresh); err != nil {
			return fmt.Errorf("%s disk: %w", kind, err)
		}
		out.Added = append(out.Added, kind)
	}
	return nil
}

// newest is the controller of the same type with the highest key.
func newest(devices object.VirtualDeviceList, like types.BaseVirtualDevice) (types.BaseVirtualController, error) {
	var found types.BaseVirtualDevice
	for _, one := range devices.SelectByType(like) {
		if found == nil || one.GetVirtualDevice().Key > found.GetVirtualDevice().Key {
			found = one
		}
	}
	controller, ok := found.(types.BaseVirtualController)
	if !ok {
		return nil, fmt.Errorf("no controller like %T", like)
	}
	return controller, nil
}

func disks(ctx context.Context, vm *object.VirtualMachine) ([]disk, error) {
	devices, err := vm.Device(ctx)
	if err != nil {
		return nil, err
	}
	var all []disk
	for _, one := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		d := one.(*types.VirtualDisk)
		seen := disk{Key: d.Key, Name: devices.Name(d), Unit: *d.UnitNumber}
		controller := devices.FindByKey(d.ControllerKey)
		if controller == nil {
			return nil, fmt.Errorf("disk %d: no controller %d", d.Key, d.ControllerKey)
		}
		seen.Controller = devices.Type(controller)
		seen.Bus = controller.(types.BaseVirtualController).GetVirtualController().BusNumber
		if scsi, ok := controller.(types.BaseVirtualSCSIController); ok {
			seen.Shared = string(scsi.GetVirtualSCSIController().SharedBus)
		}
		switch b := d.Backing.(type) {
		case *types.VirtualDiskFlatVer2BackingInfo:
			seen.Backing, seen.Mode, seen.Sharing, seen.ChangeID = "flat", b.DiskMode, b.Sharing, b.ChangeId
			if b.KeyId != nil {
				seen.KeyID = b.KeyId.KeyId
			}
		case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
			seen.Backing, seen.Mode, seen.Mapping, seen.ChangeID = "mapping", b.DiskMode, b.CompatibilityMode, b.ChangeId
			seen.Sharing = b.Sharing
		default:
			return nil, fmt.Errorf("disk %d: backing %T", d.Key, b)
		}
		all = append(all, seen)
	}
	return all, nil
}
